"""PixArt-alpha and PixArt-Sigma (Chen et al. 2023, arXiv 2310.00426): a DiT trunk with cross-attention on T5 tokens."""

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


class PixArtArchitecture(Architecture):
    """Padded text tokens reach ``caption_projection`` and ``attn2.to_k/to_v``. Attention masks them, so they are not
    recorded."""

    usual = (20, 4.5)
    ignore: ClassVar[IgnoreRules] = {
        r"^pos_embed\.proj$": LATENT_INPUT,
        r"^adaln_single\.": ONE_SAMPLE_PER_TIMESTEP,
        r"^proj_out$": FINAL,
    }
    masked_layers: ClassVar[str | None] = r"^caption_projection\.|\.attn2\.to_[kv]$"

    # No resolution binning: the size is exactly as given. No cleaning: it depends on which packages are installed.
    call_arguments: ClassVar[Mapping[str, Any]] = {"clean_caption": False, "use_resolution_binning": False}

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline

        return isinstance(pipeline, PixArtAlphaPipeline | PixArtSigmaPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> PixArtArchitecture:
        height, width = image_size(pipeline, pipeline.transformer)
        components = ("transformer", *present_text_encoders(pipeline))
        return cls("pixart", "transformer", components, ResolvedSampling(*cls.usual, height, width))

    def text_mask(self, call: dict[str, Any]) -> Tensor | None:
        return token_mask(call, "encoder_attention_mask", "attention_mask")
