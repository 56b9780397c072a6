"""An image that a user gives: read, sized, and the pipeline that takes it."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image, ImageOps, UnidentifiedImageError

from vqcompress.architectures.call_inputs import IMAGES, drawn_inputs, parameters
from vqcompress.errors import RecipeError, UnsupportedError
from vqcompress.sampling_config import ResolvedSampling

MULTIPLE = 16
"""Sides in pixels that every pipeline takes are multiples of it."""


def read_image(source: Any, what: str = "image") -> Image.Image:
    """``source``, a path or a PIL image, as RGB and the right way up. Raises `RecipeError` for what is no image."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if not isinstance(source, str | PathLike):
        raise RecipeError(f"{what}: a path or a PIL image is wanted, not {type(source).__name__}")
    path = Path(source).expanduser()
    if not path.is_file():
        raise RecipeError(f"{what}: there is no file {path}")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        raise RecipeError(f"{what}: {path} cannot be read as an image; give a PNG, JPEG or WebP file") from None


def taking_images(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """``pipeline``, or diffusers' image-to-image pipeline around the same components.

    Raises `UnsupportedError` where diffusers has none.
    """
    if set(parameters(pipeline.__call__)) & {*IMAGES}:
        return pipeline
    from diffusers import AutoPipelineForImage2Image  # with every pipeline that it knows

    try:
        return AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError as error:
        raise UnsupportedError(
            f"{type(pipeline).__name__} draws from text alone, and diffusers has no image-to-image pipeline for it; "
            "leave the image out"
        ) from error


def wants_image(pipeline: DiffusionPipeline) -> bool:
    """Whether ``pipeline`` has nothing to do without an image of the user's."""
    return bool({*drawn_inputs(pipeline)} & {*IMAGES})


def fitting_size(image: Image.Image, usual: ResolvedSampling, height: int | None, width: int | None) -> tuple[int, int]:
    """``(height, width)`` asked for, else the image's in multiples of 16, made smaller where its area is larger than
    the model's usual one."""
    area = usual.height * usual.width
    scale = min(1.0, math.sqrt(area / (image.width * image.height)))
    sides = (max(MULTIPLE, int(scale * side + 1e-6) // MULTIPLE * MULTIPLE) for side in (image.height, image.width))
    own_height, own_width = sides
    return height or own_height, width or own_width
