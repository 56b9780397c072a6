"""Images as small PNG files, and grids of them: a row for each prompt, a column for each pipeline."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vqcompress.errors import VQCompressError

MAX_SIDE = 384
"""Larger images are scaled down to this many pixels; metrics always see the full size."""

CELL = 128  # least side of an image, in pixels
GAP = 8
CAPTION_WIDTH = 200
TEXT_SIZE = 14
LINE = 18
PAPER, INK, HAIRLINE = (255, 255, 255), (32, 36, 42), (208, 208, 204)


def to_png(image: Tensor) -> bytes:
    """PNG file of an image ``[3, height, width]`` in 0..1 (values outside are clipped, NaN is black)."""
    picture = to_picture(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return encode(picture)


def full_png(image: Tensor) -> bytes:
    """PNG file of the same in full size."""
    return encode(to_picture(image))


def is_scaled_down(image: Tensor) -> bool:
    """Whether `to_png` makes the image smaller."""
    return max(image.shape[-2:]) > MAX_SIDE


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


def image_grid(pictures: Mapping[str, Sequence[bytes]], prompts: Sequence[str]) -> Image.Image:
    """Lay ``pictures`` (label -> PNG files, one per prompt) out; small images are enlarged without smoothing.

    All labels must have the same number of images, at most one for each prompt.
    """
    count = _common_count(pictures, prompts)
    images = {label: [_enlarged(decode(png)) for png in files] for label, files in pictures.items()}
    width, height = next(iter(images.values()))[0].size
    headings = {label: wrap(label, max(8, width // 8)) for label in images}
    top = GAP + LINE * max(len(lines) for lines in headings.values())
    grid = Image.new("RGB", (CAPTION_WIDTH + len(images) * (width + GAP), top + count * (height + GAP)), PAPER)
    for column, (label, cells) in enumerate(images.items()):
        x = CAPTION_WIDTH + column * (width + GAP)
        _write(grid, (x, GAP // 2), headings[label])
        for row, image in enumerate(cells):
            _frame(grid, image, (x, top + row * (height + GAP)))
    for row in range(count):
        _write(grid, (GAP, top + row * (height + GAP)), _lines(prompts[row], height))
    return grid


def tile(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows of ``columns``, small ones enlarged without smoothing."""
    if not pictures:
        raise VQCompressError("no pictures to lay out")
    enlarged = [_enlarged(picture) for picture in pictures]
    width, height = enlarged[0].width + GAP, enlarged[0].height + GAP
    columns = min(columns, len(enlarged))
    sheet = Image.new("RGB", (columns * width + GAP, -(-len(enlarged) // columns) * height + GAP), PAPER)
    for index, picture in enumerate(enlarged):
        _frame(sheet, picture, (GAP + index % columns * width, GAP + index // columns * height))
    return sheet


def _common_count(pictures: Mapping[str, Sequence[bytes]], prompts: Sequence[str]) -> int:
    counts = {label: len(files) for label, files in pictures.items()}
    if len(set(counts.values())) != 1 or not 0 < next(iter(counts.values())) <= len(prompts):
        raise VQCompressError(
            f"a grid needs one image per prompt from each variant, got {counts} for {len(prompts)} prompts"
        )
    return next(iter(counts.values()))


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = max(1, CELL // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _frame(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int]) -> None:
    """Paste with a hairline around it, without which a white picture has no edge."""
    x, y = corner
    outline = (x - 1, y - 1, x + picture.width, y + picture.height)
    ImageDraw.Draw(sheet).rectangle(outline, outline=HAIRLINE)
    sheet.paste(picture, corner)


def _lines(prompt: str, height: int) -> list[str]:
    lines = wrap(prompt, CAPTION_WIDTH // 8)
    room = max(1, height // LINE)
    return lines if len(lines) <= room else [*lines[: room - 1], lines[room - 1][:-1] + "…"]


def _write(grid: Image.Image, corner: tuple[int, int], lines: Sequence[str]) -> None:
    # matplotlib's own typeface: the same file, hence the same pixels, wherever the report is made.
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT_SIZE)
    for number, line in enumerate(lines):
        ImageDraw.Draw(grid).text((corner[0], corner[1] + number * LINE), line, fill=INK, font=font)
