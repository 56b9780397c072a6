"""Draw the comparison's images, the same seeds for every pipeline, and take the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from vqcompress.architectures import Architecture

PIXELS_AT_ONCE = 1 << 20
MAX_BATCH = 16
WARM_UP_STEPS = 2  # kernels compile and caches fill before the clock starts


@dataclass(frozen=True)
class Sampling:
    """What to draw: image ``i`` shows ``prompts[i]`` and starts from ``seed + i``."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance: float


def draw(
    pipeline: DiffusionPipeline, architecture: Architecture, sampling: Sampling, progress: Callable[[int, int], None]
) -> tuple[Tensor, float]:
    """Images ``[n, 3, height, width]`` in 0..1, float32 on the CPU, and seconds an image."""
    batch = batch_size(architecture)
    _batch(pipeline, architecture, sampling, slice(0, 1), min(WARM_UP_STEPS, sampling.steps))
    images = []
    start = time.perf_counter()
    for first in range(0, len(sampling.prompts), batch):
        images.append(_batch(pipeline, architecture, sampling, slice(first, first + batch), sampling.steps))
        progress(min(first + batch, len(sampling.prompts)), len(sampling.prompts))
    return torch.cat(images), (time.perf_counter() - start) / len(sampling.prompts)


def batch_size(architecture: Architecture) -> int:
    """Images drawn at once: about a megapixel."""
    size = architecture.defaults
    return max(1, min(MAX_BATCH, PIXELS_AT_ONCE // (size.height * size.width)))


def _batch(
    pipeline: DiffusionPipeline, architecture: Architecture, sampling: Sampling, part: slice, steps: int
) -> Tensor:
    prompts: Sequence[str] = sampling.prompts[part]
    seeds = [sampling.seed + index for index in range(len(sampling.prompts))][part]
    images = architecture.sample(
        pipeline, prompts, seeds=seeds, steps=steps, guidance=sampling.guidance, output_type="pt"
    )
    return torch.as_tensor(images).float().cpu()
