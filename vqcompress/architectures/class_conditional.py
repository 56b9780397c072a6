"""Class-conditional networks of `vqcompress.models`: SiT, MDT, DiT-MoE, DiffiT, Flag-DiT, Large-DiT, official DiT."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from vqcompress.architectures.architecture import Architecture, OutputType, Pipeline
from vqcompress.architectures.class_names import class_names, class_numbers
from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP, IgnoreRules
from vqcompress.embedded import EMBEDDED
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import ResolvedSampling


class ClassConditionalArchitecture(Architecture):
    """`ClassConditionalPipeline`: "prompts" are class ids (``"207"``) or names. Modulation inside the blocks, up to a
    third of the weights, is quantized. The gate of a mixture of experts is a bare parameter and stays in float."""

    ignore: ClassVar[IgnoreRules] = {
        r"^(x_embedder|tokenizer)(\.|$)": LATENT_INPUT,
        r"^[ty]_embedder\.": ONE_SAMPLE_PER_TIMESTEP,
        r"^(final_layer\.|head$)": FINAL,
    }

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from vqcompress.models.class_pipeline import ClassConditionalPipeline

        return isinstance(pipeline, ClassConditionalPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> ClassConditionalArchitecture:
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        name = type(pipeline.transformer).__name__
        steps, prompts = cls.usual[0], "imagenet"
        model = EMBEDDED["shapes-moe"]
        if pipeline.labels and pipeline.labels.keys() <= class_names(model.prompt_set).keys():
            name, steps, prompts = "shapes-moe", model.steps, model.prompt_set
        return cls(
            name,
            "transformer",
            ("transformer",),
            ResolvedSampling(steps, pipeline.default_guidance, side, side),
            prompts,
        )

    def run(
        self,
        pipeline: Pipeline,
        prompts: list[str],
        *,
        generators: list[torch.Generator],
        sampling: ResolvedSampling,
        output_type: OutputType,
    ) -> Any:
        if (sampling.height, sampling.width) != (self.defaults.height, self.defaults.width):
            raise ArchitectureError(
                f"{self.name} generates {self.defaults.height}x{self.defaults.width} images only; leave height and "
                "width out"
            )
        classes = pipeline.num_classes
        labels = [0] * len(prompts) if classes is None else class_numbers(prompts, pipeline.labels, classes)
        return pipeline(labels, sampling.guidance, sampling.steps, generators, output_type).images
