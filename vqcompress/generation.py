"""Draw images with a pipeline, compressed or not: what `vqcompress generate` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.checkpoint import check_hashes
from vqcompress.errors import RecipeError
from vqcompress.placement import Placement, place
from vqcompress.progress import Progress, silent
from vqcompress.sampling_config import SamplingConfig


def generate(
    model: str | Path | DiffusionPipeline,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    sampling: SamplingConfig | None = None,
    verified: bool = True,
    progress: Progress | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> list[Any]:
    """A PIL image for each of ``prompts``, one after another; of a video model, its frames.

    ``model`` is a compressed folder or any model that `vqcompress.quantize` takes. ``seeds`` are 0, 1, … by default:
    the same seed gives the same noise on every device. Values that ``sampling`` leaves open are the model's. Files with
    a manifest are compared with it first, unless ``verified`` is off. ``device``, ``dtype`` and ``offload`` as in
    `Placement`; a pipeline that is passed in stays where it is. Raises a `VQCompressError` for whatever a user can fix.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise RecipeError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    if isinstance(model, DiffusionPipeline):
        pipeline = model
    else:
        pipeline = open_placed(model, Placement.parse(device, dtype, offload), verified=verified)
    architecture, made = architecture_of(pipeline), []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        made.append(architecture.sample(pipeline, [prompt], seeds=[seed], sampling=sampling, output_type="pil")[0])
        (progress or silent)("generating", index + 1, len(prompts), prompt[:60])
    return made


def open_placed(model: str | Path, placement: Placement, *, verified: bool = True) -> DiffusionPipeline:
    """``model`` where ``placement`` says; its files are compared with their manifest first, where they have one."""
    if verified:
        check_hashes(model)
    pipeline = open_pipeline(model, dtype=placement.opening_dtype)
    place(pipeline, placement)
    return pipeline
