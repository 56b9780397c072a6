"""Text pipelines of `vqcompress.models`: Lumina-T2I, Lumina-Next, PT-DiT (arXiv 2405.05945, 2406.18583, 2409.04005)."""

from __future__ import annotations

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


class TextFlowArchitecture(Architecture):
    """Padded text tokens are masked in the networks and not recorded.

    Lumina's block modulation, 12–14 % of its weights, is quantized. PT-DiT has one modulation layer for all blocks,
    which stays dense. Its proxy layers have one sample per window.
    """

    usual = (30, 4.0)
    ignore: ClassVar[IgnoreRules] = {
        r"^(x_embedder|pos_embed\.proj)$": LATENT_INPUT,
        r"^(t_embedder|cap_embedder|adaln_single)\.": ONE_SAMPLE_PER_TIMESTEP,
        r"^(final_layer\.|proj_out$)": FINAL,
    }
    masked_layers: ClassVar[str | None] = r"\.attention\.w[kv]_y$|^caption_projection\.|\.attn2\.to_[kv]$"

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from vqcompress.models.text_pipeline import TextPipeline

        return isinstance(pipeline, TextPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> TextFlowArchitecture:
        height, width = image_size(pipeline, pipeline.transformer, default=pipeline.default_sample_size)
        components = ("transformer", *present_text_encoders(pipeline))
        name = type(pipeline.transformer).__name__
        return cls(name, "transformer", components, ResolvedSampling(*cls.usual, height, width))

    def text_mask(self, call: dict[str, Any]) -> Tensor | None:
        return token_mask(call, "cap_mask", "encoder_attention_mask", "attention_mask")
