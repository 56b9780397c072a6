"""Lumina-Next (Zhuo et al. 2024, arXiv 2406.18583): Next-DiT conditioned on Gemma's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vqcompress.architectures.architecture import (
    Architecture,
    Pipeline,
    image_size,
    present_text_encoders,
    token_mask,
)
from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP, IgnoreRules
from vqcompress.sampling_config import ResolvedSampling


class LuminaArchitecture(Architecture):
    """Padded text tokens are masked in ``attn2`` and not recorded.

    Block modulation, 14 % of the weights, is quantized.
    """

    usual = (30, 4.0)
    ignore: ClassVar[IgnoreRules] = {
        r"^patch_embedder\.": LATENT_INPUT,
        r"^time_caption_embed\.": ONE_SAMPLE_PER_TIMESTEP,
        r"^norm_out\.": FINAL,
    }
    masked_layers: ClassVar[str | None] = r"\.attn2\.to_[kv]$"

    # No caption cleaning: its result depends on which packages are installed.
    call_arguments: ClassVar[Mapping[str, Any]] = {"clean_caption": False}

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from diffusers import LuminaPipeline

        return isinstance(pipeline, LuminaPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> LuminaArchitecture:
        height, width = image_size(pipeline, pipeline.transformer)
        components = ("transformer", *present_text_encoders(pipeline))
        return cls("lumina", "transformer", components, ResolvedSampling(*cls.usual, height, width))

    def text_mask(self, call: dict[str, Any]) -> Tensor | None:
        return token_mask(call, "encoder_mask", "attention_mask")
