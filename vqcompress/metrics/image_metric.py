"""What a metric of images is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageMetric:
    """``measure(images, originals)`` compares two batches ``[n, channels, height, width]``, float64 in 0..1.

    ``name`` is the key in ``report.json``. Metrics with a ``heading`` are in the report's table of fidelity, with
    ``unit`` below it and so many ``decimals`` of ``scale`` times the value. Where ``per_image`` (the same arguments,
    ``[n]``) is given, the report keeps every image's value under ``name`` and shows their median and mean with
    intervals and the worst one; a metric that ``falls`` is better when lower.
    """

    name: str
    measure: Callable[[Tensor, Tensor], float]
    heading: str = ""
    unit: str = ""
    decimals: int = 1
    per_image: Callable[[Tensor, Tensor], Tensor] | None = None
    falls: bool = False
    scale: float = 1.0
