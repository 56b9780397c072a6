"""What the page's image viewer offers: which images, called what, of which variants, in which size."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vqcompress.reports.comparison import ORIGINAL, Comparison
from vqcompress.reports.formatting import SPACE, fixed

ENLARGED_BELOW = 128  # pixels: smaller images are enlarged, and without smoothing


@dataclass(frozen=True)
class ViewerImage:
    """One image: its place among the pictures, and what the list calls it."""

    place: int
    name: str


@dataclass(frozen=True)
class Viewer:
    """``labels`` are the variants to look at; ``width`` and ``height`` are the pixels of what is shown."""

    images: tuple[ViewerImage, ...]
    labels: tuple[str, ...]
    width: int
    height: int
    in_full: bool

    @property
    def is_small(self) -> bool:
        """Whether the images are enlarged."""
        return max(self.width, self.height) < ENLARGED_BELOW

    @property
    def shown_width(self) -> int:
        """CSS pixels."""
        return 384 // max(self.width, self.height) * self.width if self.is_small else self.width


def viewer(comparison: Comparison) -> Viewer | None:
    """None without pictures. Large images are offered in full size, for the first variant alone."""
    pictures = comparison.full_size or comparison.pictures
    if not pictures.get(ORIGINAL):
        return None
    width, height = struct.unpack(">II", pictures[ORIGINAL][0][16:24])  # of a PNG file's header
    images = tuple(ViewerImage(at, _name(comparison, at)) for at in range(len(pictures[ORIGINAL])))
    labels = tuple(label for label in pictures if label != ORIGINAL)
    return Viewer(images, labels, width, height, bool(comparison.full_size))


def _name(comparison: Comparison, place: int) -> str:
    lead, index = comparison.variants[0], comparison.pictured[place]
    role = {lead.worst_image: "worst: ", lead.median_image: "median: "}.get(index, "")
    values = lead.image_values.get("psnr", ())
    psnr = f", {fixed(values[index], 1)}{SPACE}dB" if index < len(values) else ""
    return f"{role}#{index + 1}{psnr}, {comparison.settings.prompts[index]}"
