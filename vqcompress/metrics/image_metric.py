"""What a metric of images is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageMetric:
    """``measure(images, originals)`` compares two batches ``[n, channels, height, width]``, float64 in 0..1.

    ``name`` is the key in ``report.json``. Metrics with a ``heading`` have a column in the report's table, with
    ``unit`` below it and so many ``decimals``.
    """

    name: str
    measure: Callable[[Tensor, Tensor], float]
    heading: str = ""
    unit: str = ""
    decimals: int = 1
