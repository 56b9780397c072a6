"""Draw the comparison's images, from the same seeds with every pipeline, and measure the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from vqcompress.architectures import Architecture
from vqcompress.denoiser_calls.record import listening
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.reports.latents import LatentsRecord
from vqcompress.sampling_config import ResolvedSampling

PIXELS_AT_ONCE = 1 << 20
MAX_BATCH = 16
WARM_UP_STEPS = 2  # kernels compile and caches fill before the clock starts


@dataclass(frozen=True)
class Drawing:
    """What to draw: image ``i`` shows ``prompts[i]`` and starts from ``seed + i``."""

    prompts: tuple[str, ...]
    seed: int
    sampling: ResolvedSampling

    def run(self, pipeline: DiffusionPipeline, architecture: Architecture, prompts: int) -> SamplingRun:
        """Sampling of the first ``prompts`` prompts to their latents, to record what ``pipeline`` does."""
        return SamplingRun(
            pipeline, architecture, self.prompts[:prompts], self.seed, self.sampling.config(), batch_size(architecture)
        )


def draw(
    pipeline: DiffusionPipeline,
    architecture: Architecture,
    drawing: Drawing,
    progress: Callable[[int, int], None],
    latents: LatentsRecord | None = None,
) -> tuple[Tensor, float]:
    """Images ``[n, 3, height, width]`` in 0..1, float32 on the CPU, and seconds per image.

    ``latents`` sees the denoiser's calls for as many of the first prompts as it wants.
    """
    batch = batch_size(architecture)
    warm_up = replace(drawing.sampling, steps=min(WARM_UP_STEPS, drawing.sampling.steps))
    _batch(pipeline, architecture, replace(drawing, sampling=warm_up), slice(0, 1))
    images = []
    start = time.perf_counter()
    for first in range(0, len(drawing.prompts), batch):
        part = slice(first, min(first + batch, len(drawing.prompts)))
        with _watching(pipeline, architecture, drawing, latents, part):
            images.append(_batch(pipeline, architecture, drawing, part))
        progress(min(first + batch, len(drawing.prompts)), len(drawing.prompts))
    return torch.cat(images), (time.perf_counter() - start) / len(drawing.prompts)


def _watching(
    pipeline: DiffusionPipeline,
    architecture: Architecture,
    drawing: Drawing,
    latents: LatentsRecord | None,
    part: slice,
):
    if latents is None or not latents.wants(part.start):
        return nullcontext()
    return listening(drawing.run(pipeline, architecture, 1), latents.of_images(part.stop - part.start))


def batch_size(architecture: Architecture) -> int:
    """Images drawn at once: about a megapixel."""
    size = architecture.defaults
    return max(1, min(MAX_BATCH, PIXELS_AT_ONCE // (size.height * size.width)))


def _batch(pipeline: DiffusionPipeline, architecture: Architecture, drawing: Drawing, part: slice) -> Tensor:
    prompts: Sequence[str] = drawing.prompts[part]
    seeds = [drawing.seed + index for index in range(len(drawing.prompts))][part]
    images = architecture.sample(pipeline, prompts, seeds=seeds, sampling=drawing.sampling.config(), output_type="pt")
    return torch.as_tensor(images).float().cpu()
