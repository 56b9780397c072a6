"""PixArt's network on CLIP text (`models.clip_pixart_pipeline`); the embedded model `shapes-dit` has this form."""

from __future__ import annotations

from vqcompress.architectures.architecture import Pipeline, image_size
from vqcompress.architectures.text_flow import TextFlowArchitecture
from vqcompress.sampling_config import ResolvedSampling
from vqcompress.shapes import DEFAULT_GUIDANCE, DEFAULT_STEPS


class ClipPixArtArchitecture(TextFlowArchitecture):
    """Text is padded as CLIP pads it, and read to its end: nothing is masked."""

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from vqcompress.models.clip_pixart_pipeline import ClipPixArtPipeline

        return isinstance(pipeline, ClipPixArtPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> ClipPixArtArchitecture:
        found = super().of(pipeline)
        config = pipeline.transformer.config
        embedded = config["sample_size"] == 8 and config["in_channels"] == 8
        defaults = ResolvedSampling(DEFAULT_STEPS, DEFAULT_GUIDANCE, *image_size(pipeline, pipeline.transformer))
        name, prompts = ("shapes-dit", "shapes") if embedded else (found.name, "general")
        return cls(name, found.denoiser, found.components, defaults, prompts)
