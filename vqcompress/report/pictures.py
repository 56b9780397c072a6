"""Images as small PNG files: what the page embeds and the grid is laid out from."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

MAX_SIDE = 384
"""Larger images are scaled down to this many pixels; metrics always see the full size."""


def to_png(image: Tensor) -> bytes:
    """PNG file of an image ``[3, height, width]`` in 0..1 (values outside are clipped, NaN is black)."""
    picture = to_picture(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return encode(picture)


def to_picture(image: Tensor) -> Image.Image:
    """8-bit RGB picture of an image ``[3, height, width]`` in 0..1."""
    pixels = image.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8), "RGB")


def encode(picture: Image.Image) -> bytes:
    """PNG file without any metadata, so that the same pixels are the same bytes."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def decode(png: bytes) -> Image.Image:
    """The picture in a PNG file."""
    return Image.open(io.BytesIO(png)).convert("RGB")
