"""What a user asks of a pipeline that its call does not have: refused before anything is drawn."""

from __future__ import annotations

from inspect import Parameter

from diffusers import DiffusionPipeline

from vqcompress.architectures.call_inputs import (
    FRAMES,
    MASKS,
    RATES,
    VIDEOS,
    drawn_inputs,
    has_true_guidance,
    parameters,
)
from vqcompress.errors import RecipeError
from vqcompress.generation.given_image import wants_image
from vqcompress.sampling_config import SamplingConfig

GUIDANCE = ("guidance_scale", "true_cfg_scale")
SIZE_MULTIPLE = 8
"""Sides of every latent model's images are multiples of it, in pixels."""


def check_sampling(sampling: SamplingConfig) -> None:
    """What can be told without a pipeline. Raises `RecipeError`."""
    for name, side in (("height", sampling.height), ("width", sampling.width)):
        if side is not None and (side < SIZE_MULTIPLE or side % SIZE_MULTIPLE):
            near = max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)
            raise RecipeError(
                f"{name} {side} is not a multiple of {SIZE_MULTIPLE} pixels, which models need; take {near}"
            )
    if sampling.steps is not None and sampling.steps < 1:
        raise RecipeError(f"steps: {sampling.steps} is less than 1")
    inputs = sampling.inputs
    if inputs.image is None and inputs.strength is not None:
        raise RecipeError("strength says how far an image is changed: give an image too, or leave strength out")
    if inputs.image is None and inputs.mask is not None:
        raise RecipeError("a mask says where an image is painted anew: give an image too, or leave the mask out")
    if inputs.strength is not None and not 0 < inputs.strength <= 1:
        raise RecipeError(f"strength {inputs.strength:g} is not more than 0 and at most 1")


def check_call(pipeline: DiffusionPipeline, sampling: SamplingConfig, guidance: float) -> None:
    """Raises `RecipeError` where ``sampling`` asks for what the pipeline's call has no argument for, or that would have
    no effect. ``guidance`` is the scale that it will draw with."""
    accepted, name, inputs = parameters(pipeline.__call__), type(pipeline).__name__, sampling.inputs
    asked = {
        "negative prompt": (inputs.negative_prompt, ("negative_prompt",)),
        "mask": (inputs.mask, MASKS),
        "strength": (inputs.strength, ("strength",)),
        "number of frames": (inputs.frames, FRAMES),
        "guidance scale": (sampling.guidance, GUIDANCE),
    }
    if inputs.image is None:
        asked["size"] = (sampling.height or sampling.width, ("height", "width"))
    for what, (value, arguments) in asked.items():
        if value is not None and not accepted.keys() & {*arguments}:
            raise RecipeError(f"{name} takes no {what}; leave it out")
    if inputs.image is None and wants_image(pipeline):
        raise RecipeError(f"{name} works on an image: give one with --image, or image= in Python")
    if videos := [argument for argument in drawn_inputs(pipeline) if argument in VIDEOS]:
        raise RecipeError(f"{name} works on {' and '.join(videos)}, which is not read here: call it from Python")
    if inputs.negative_prompt is not None and not _guides_by_text(accepted, guidance):
        raise RecipeError(
            f"a negative prompt has no effect here: {name} draws without a second, negative call at guidance "
            f"{guidance:g}; leave it out, or give a model that is not distilled a guidance above 1"
        )


def _guides_by_text(accepted: dict[str, Parameter], guidance: float) -> bool:
    embedded = "true_cfg_scale" in accepted and not has_true_guidance(accepted)
    return guidance > 1 and not embedded


def draws_video(pipeline: DiffusionPipeline) -> bool:
    """Whether ``pipeline`` makes frames."""
    return bool(parameters(pipeline.__call__).keys() & {*FRAMES, *VIDEOS})


def own_rate(pipeline: DiffusionPipeline) -> float | None:
    """Frames a second that the pipeline's call is conditioned on unless told otherwise."""
    accepted = parameters(pipeline.__call__)
    defaults = (accepted[name].default for name in RATES if name in accepted)
    return next((float(value) for value in defaults if isinstance(value, int | float)), None)
