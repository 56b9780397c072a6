"""DiT (Peebles and Xie 2023, arXiv 2212.09748) in the diffusers implementation: class-conditional, no text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vqcompress.architectures.architecture import (
    Architecture,
    OutputType,
    Pipeline,
    generator_arguments,
    image_size,
)
from vqcompress.architectures.class_names import class_numbers
from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP, IgnoreRules
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import ResolvedSampling


class DiTArchitecture(Architecture):
    """`DiTPipeline`: "prompts" are class ids (``"207"``) or class names of the ``imagenet`` prompt set.

    Modulation (``norm1.linear``) is a third of all weights, so it is quantized although it has one sample per image
    and step.
    """

    ignore: ClassVar[IgnoreRules] = {
        r"^pos_embed\.proj$": LATENT_INPUT,
        r"\.norm1\.emb\.": ONE_SAMPLE_PER_TIMESTEP,
        r"^proj_out_[12]$": FINAL,
    }

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from diffusers import DiTPipeline

        return isinstance(pipeline, DiTPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> DiTArchitecture:
        height, width = image_size(pipeline, pipeline.transformer)
        return cls("dit", "transformer", ("transformer",), ResolvedSampling(*cls.usual, height, width), "imagenet")

    def run(
        self,
        pipeline: Pipeline,
        prompts: list[str],
        *,
        generators: list[torch.Generator],
        sampling: ResolvedSampling,
        output_type: OutputType,
    ) -> Any:
        """`DiTPipeline.__call__` reimplemented: it always decodes, and never passes its generator to the scheduler."""
        if (sampling.height, sampling.width) != (self.defaults.height, self.defaults.width):
            raise ArchitectureError(
                f"DiT generates {self.defaults.height}x{self.defaults.width} images only (its position table is "
                "fixed); leave height and width out"
            )
        labels = class_numbers(prompts, pipeline.labels, pipeline.transformer.config.num_embeds_ada_norm)
        with torch.no_grad():
            latents = _denoise(pipeline, labels, generators, sampling)
            return latents if output_type == "latent" else _images(pipeline, latents, output_type)


def _denoise(
    pipeline: Pipeline, labels: list[int], generators: list[torch.Generator], sampling: ResolvedSampling
) -> Tensor:
    """Final latents ``[n, channels, side, side]``."""
    from diffusers.utils.torch_utils import randn_tensor

    model, scheduler = pipeline.transformer, pipeline.scheduler
    device, channels, side = pipeline._execution_device, model.config.in_channels, model.config.sample_size
    shape = (len(labels), channels, side, side)
    latents = randn_tensor(shape, generator=generators, device=device, dtype=model.dtype)
    classes = torch.tensor(labels, device=device)
    scheduler.set_timesteps(sampling.steps)
    extra = generator_arguments(scheduler, generators)
    for t in scheduler.timesteps:
        noise = _guided(model, scheduler.scale_model_input(latents, t), t, classes, sampling.guidance)
        latents = scheduler.step(noise[:, :channels], t, latents, **extra).prev_sample
    return latents


def _guided(model: Any, x: Tensor, t: Tensor, classes: Tensor, guidance: float) -> Tensor:
    """The denoiser's estimate, with classifier-free guidance on the latent channels when ``guidance`` > 1."""
    if guidance <= 1:
        return model(x, timestep=torch.as_tensor(t, device=x.device).expand(len(x)), class_labels=classes).sample
    null = torch.full_like(classes, model.config.num_embeds_ada_norm)
    steps = torch.as_tensor(t, device=x.device).expand(2 * len(x))
    both = model(torch.cat([x, x]), timestep=steps, class_labels=torch.cat([classes, null])).sample
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def _images(pipeline: Pipeline, latents: Tensor, output_type: OutputType) -> Any:
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = (decoded / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    return pipeline.numpy_to_pil(images.cpu().permute(0, 2, 3, 1).float().numpy())
