"""Draw images with a pipeline, compressed or not: what `vqcompress generate` calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from diffusers import DiffusionPipeline

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.architectures.architecture import steps_reported
from vqcompress.architectures.lora_baking import ScaledLora
from vqcompress.calibration.prompts import load_prompts
from vqcompress.checkpoint import check_hashes
from vqcompress.errors import RecipeError, VQCompressError, first_line
from vqcompress.folder_files import StrPath
from vqcompress.generation.call_checks import check_call, check_sampling
from vqcompress.generation.given_image import fitting_size, read_image, taking_images
from vqcompress.generation.loras import load_loras, parsed_loras
from vqcompress.generation.prompt_length import cut_prompts
from vqcompress.layers import set_dense_budget
from vqcompress.placement import Placement, place
from vqcompress.progress import Progress, silent, watched
from vqcompress.sampling_config import GivenInputs, ResolvedSampling, SamplingConfig

_log = logging.getLogger(__name__)


def generate(
    model: StrPath | DiffusionPipeline,
    prompts: StrPath | Sequence[str],
    *,
    seeds: int | Sequence[int] = 0,
    negative_prompt: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    image: Any = None,
    mask: Any = None,
    strength: float | None = None,
    frames: int | None = None,
    rate: float | None = None,
    loras: Sequence[str | ScaledLora] = (),
    dense_budget: str | int | None = None,
    verified: bool = True,
    progress: Progress | bool | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> list[Any]:
    """A PIL image for each of ``prompts``, one after another; of a video model, its list of frames.

    ``model`` is a compressed folder or any model that `vqcompress.quantize` takes; a pipeline that is passed in stays
    where it is. ``prompts``: one, a list, or the `Path` of a file with one a line. ``seeds``: one for each prompt, or
    that of the first, to which the next ones add 1; the same seed gives the same noise on every device. What is None is
    the model's own value: ``steps``, ``guidance``, ``height`` and ``width`` in pixels, ``frames`` of a video and their
    ``rate`` a second.

    ``image`` and ``mask``, paths or PIL images, go to pipelines that take them; a text-to-image pipeline is exchanged
    for diffusers' image-to-image one, where there is one. ``strength`` in 0..1 says how far it may change the image.
    ``loras``: ``"PATH"`` or ``"PATH:SCALE"``, which stay loaded on a pipeline that is passed in. ``dense_budget`` as in
    `vqcompress.set_dense_budget`. Files with a manifest are compared with it first, unless ``verified`` is off.
    ``progress`` as in `vqcompress.quantize`, ``device``, ``dtype`` and ``offload`` as in `Placement`. Raises a
    `VQCompressError` for whatever a user can fix; what can be known without the model is told before it is opened.
    """
    texts = prompt_list(prompts)
    numbers = seed_list(seeds, len(texts))
    inputs = GivenInputs(
        negative_prompt,
        None if image is None else read_image(image),
        None if mask is None else read_image(mask, "mask"),
        strength,
        frames,
        rate,
    )
    sampling = SamplingConfig(steps, guidance, height, width, inputs=inputs)
    check_sampling(sampling)
    placement = Placement.parse(device, dtype, offload)
    pipeline, sampling = open_placed(model, placement, sampling=sampling, loras=loras, verified=verified)
    if dense_budget is not None:
        set_dense_budget(pipeline, dense_budget)
    for sentence in cut_prompts(pipeline, texts):
        _log.warning(sentence)
    return draw(pipeline, texts, numbers, sampling, watched(progress))


def prompt_list(prompts: StrPath | Sequence[str]) -> list[str]:
    """One prompt, several, or those in a file. Raises `RecipeError` for none, an empty one, or what is no text."""
    if isinstance(prompts, PathLike):
        return list(load_prompts(prompts).prompts)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RecipeError("prompts: give a text, a list of texts, or the Path of a file with one a line")
    if not all(text.strip() for text in texts):
        raise RecipeError("a prompt is empty; write what the image should show, in quotes")
    return texts


def seed_list(seeds: int | Sequence[int], count: int) -> list[int]:
    """A seed for each of ``count`` prompts. Raises `RecipeError` for another number of them, or what is no seed."""
    numbers = list(range(seeds, seeds + count)) if isinstance(seeds, int) else list(seeds)
    if len(numbers) != count:
        raise RecipeError(f"{count} prompts need as many seeds, got {len(numbers)}")
    if not all(0 <= number < 2**63 for number in numbers):
        raise RecipeError("seeds are whole numbers from 0 to 2^63 - 1")
    return numbers


def open_placed(
    model: StrPath | DiffusionPipeline,
    placement: Placement,
    *,
    sampling: SamplingConfig | None = None,
    loras: Sequence[str | ScaledLora] = (),
    verified: bool = True,
) -> tuple[DiffusionPipeline, SamplingConfig]:
    """``model`` where ``placement`` says, with ``loras``, and taking an image if ``sampling`` gives one; and
    ``sampling`` with nothing left open.

    Its files are compared with their manifest first, where they have one. A pipeline that is passed in is not moved.
    Raises `RecipeError` where it cannot do what ``sampling`` asks.
    """
    sampling, scaled = sampling or SamplingConfig(), parsed_loras(loras)
    if isinstance(model, DiffusionPipeline):
        pipeline = model
    else:
        if verified:
            check_hashes(model)
        pipeline = open_pipeline(model, dtype=placement.opening_dtype)
    found = _resolved(sampling, architecture_of(pipeline).defaults)
    if sampling.inputs.image is not None:
        pipeline = taking_images(pipeline)
    check_call(pipeline, sampling, found.guidance)
    load_loras(pipeline, scaled)
    if not isinstance(model, DiffusionPipeline):
        place(pipeline, placement)
    return pipeline, found.config()


def draw(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    progress: Progress | None = None,
) -> list[Any]:
    """The results of `generate`, from what `open_placed` returned."""
    architecture, made = architecture_of(pipeline), []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        step = _StepProgress(progress or silent, index, len(prompts), prompt[:60])
        with steps_reported(pipeline, step):
            made += _one(pipeline, architecture, prompt, seed, sampling)
        step(1, 1)
    return made


def _resolved(sampling: SamplingConfig, usual: ResolvedSampling) -> ResolvedSampling:
    """``sampling`` with nothing left open; an image that is given is scaled to the size of the result."""
    found, image, mask = sampling.resolve(usual), sampling.inputs.image, sampling.inputs.mask
    if image is None:
        return found
    height, width = fitting_size(image, usual, sampling.height, sampling.width)
    fitted = {"image": image.resize((width, height))} | ({} if mask is None else {"mask": mask.resize((width, height))})
    return replace(found, height=height, width=width, inputs=replace(sampling.inputs, **fitted))


def _one(
    pipeline: DiffusionPipeline, architecture: Architecture, prompt: str, seed: int, sampling: SamplingConfig
) -> list[Any]:
    try:
        return architecture.sample(pipeline, [prompt], seeds=[seed], sampling=sampling, output_type="pil")[:1]
    except VQCompressError:
        raise
    except ValueError as error:
        raise RecipeError(
            f"{type(pipeline).__name__} cannot draw this: {first_line(error).rstrip('.')}; choose other values"
        ) from error


class _StepProgress:
    """Denoising steps of one image among ``images``, as the steps of the stage "generating"."""

    def __init__(self, progress: Progress, index: int, images: int, detail: str) -> None:
        self._progress, self._index, self._images, self._detail = progress, index, images, detail
        self._total = 1

    def __call__(self, done: int, total: int) -> None:
        if total > 1:
            self._total = total
        done = self._index * self._total + round(done / total * self._total)
        self._progress("generating", done, self._images * self._total, self._detail)
