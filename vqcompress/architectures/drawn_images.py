"""Images to edit, to continue or to look at, where a pipeline asks for some: a user's, or drawn with a seed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vqcompress.errors import CalibrationError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OCTAVES = 6


def images_of(folder: str | None, count: int, seed: int, height: int, width: int) -> list[Image]:
    """``count`` RGB images of this size: those of ``folder``, by name, from number ``seed`` on and then again; drawn
    ones if it is None.

    Raises `CalibrationError` for a folder without images, and for a file that is none.
    """
    if folder is None:
        return [drawn(seed + index, height, width) for index in range(count)]
    paths = image_paths(folder)
    return [_opened(paths[(seed + index) % len(paths)], height, width) for index in range(count)]


def image_paths(folder: str) -> list[Path]:
    """The image files in ``folder``, by name. Raises `CalibrationError` if there are none."""
    place = Path(folder).expanduser()
    found = sorted(path for path in place.glob("*") if path.suffix.lower() in SUFFIXES) if place.is_dir() else []
    if not found:
        raise CalibrationError(
            f"{folder} has no images ({', '.join(SUFFIXES)}); give a folder with some, or leave it out"
        )
    return found


def images_hash(folder: str) -> str:
    """SHA-256 of the images in ``folder``, in their order."""
    digest = hashlib.sha256()
    for path in image_paths(folder):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def drawn(seed: int, height: int, width: int) -> Image:
    """Noise with the spectrum of photographs: octaves whose amplitude falls with their frequency (Field 1987,
    doi 10.1364/JOSAA.4.002379), in a random mixture of colours."""
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    field = torch.zeros(1, 3, height, width)
    for octave in range(OCTAVES):
        side = 2 << octave
        noise = torch.randn(1, 3, side, side, generator=generator)
        field += F.interpolate(noise, (height, width), mode="bilinear", align_corners=False) / side
    colours = torch.randn(3, 3, generator=generator)
    pixels = torch.einsum("ij,jhw->hwi", colours, field[0]).sigmoid()
    return Image.fromarray((255 * pixels).round().to(torch.uint8).numpy(), "RGB")


def mask(height: int, width: int) -> Image:
    """White on the right half, which is to be painted anew."""
    from PIL import Image

    image = Image.new("L", (width, height), 0)
    image.paste(255, (width // 2, 0, width, height))
    return image


def _opened(path: Path, height: int, width: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((width, height))
    except (OSError, UnidentifiedImageError) as error:
        raise CalibrationError(f"{path} cannot be read as an image ({error}); remove it from the folder") from error
