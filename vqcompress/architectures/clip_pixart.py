"""PixArt's network on CLIP text (`models.clip_pixart_pipeline`). The embedded model `shapes-dit` is one."""

from __future__ import annotations

from vqcompress.architectures.architecture import Pipeline, image_size
from vqcompress.architectures.text_flow import TextFlowArchitecture
from vqcompress.embedded import EMBEDDED
from vqcompress.sampling_config import ResolvedSampling


class ClipPixArtArchitecture(TextFlowArchitecture):
    """Text is padded as CLIP does it. The network reads all tokens, padding included, so nothing is masked."""

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from vqcompress.models.clip_pixart_pipeline import ClipPixArtPipeline

        return isinstance(pipeline, ClipPixArtPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> ClipPixArtArchitecture:
        found = super().of(pipeline)
        model = EMBEDDED["shapes-dit"]
        defaults = ResolvedSampling(model.steps, model.guidance, *image_size(pipeline, pipeline.transformer))
        embedded = model.fits(pipeline.transformer.config)
        name, prompts = ("shapes-dit", model.prompt_set) if embedded else (found.name, "general")
        return cls(name, found.denoiser, found.components, defaults, prompts)
