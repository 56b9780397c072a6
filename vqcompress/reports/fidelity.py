"""How close each variant's images are to the original's, by every metric of images: a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vqcompress.metrics import IMAGE_METRICS, ImageMetric, mean, median
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.formatting import NONE, fixed, span
from vqcompress.reports.table import Cell, Heading, Line, Table
from vqcompress.reports.variant import Variant

NOTE = (
    "Each image against the original's from the same seed. Intervals are 95 % bootstrap intervals over images; the "
    "worst image has its number. PSNR and SSIM rise with fidelity, feature distance falls: it is LPIPS's formula on "
    "fixed oriented filters, not on a trained network, and comparable only within this table."
)
SHOWN = tuple(metric for metric in IMAGE_METRICS if metric.heading)


def fidelity_table(comparison: Comparison) -> Table:
    """Median, mean and worst image of every metric that has a value for each image, and the value of every other."""
    headings = [heading for metric in SHOWN for heading in _headings(metric)]
    lines = [
        Line(variant.label, variant.curve, tuple(cell for metric in SHOWN for cell in _cells(metric, variant)))
        for variant in comparison.variants
    ]
    return Table(tuple(headings), tuple(lines))


def _headings(metric: ImageMetric) -> Iterator[Heading]:
    if not metric.per_image:
        yield Heading(metric.heading, metric.unit)
        return
    unit = f"{metric.unit}, " if metric.unit else ""
    yield Heading(f"{metric.heading} median", f"{unit}95 % interval")
    yield Heading(f"{metric.heading} mean", f"{unit}95 % interval")
    yield Heading(f"{metric.heading} worst", f"{unit}image")


def _cells(metric: ImageMetric, variant: Variant) -> Iterator[Cell]:
    if not metric.per_image:
        yield Cell(_number(metric, variant.image_metrics.get(metric.name)))
        return
    for statistic in (median, mean):
        found = variant.over_images(metric.name, statistic)
        yield Cell(_number(metric, found.value), span(found, metric.decimals, metric.scale)) if found else Cell(NONE)
    yield _worst(metric, variant.image_values.get(metric.name, ()))


def _worst(metric: ImageMetric, values: tuple[float, ...]) -> Cell:
    if not values:
        return Cell(NONE)
    number = int(np.argmax(values) if metric.falls else np.argmin(values))
    return Cell(_number(metric, values[number]), f"#{number + 1}")


def _number(metric: ImageMetric, value: float | None) -> str:
    return fixed(None if value is None else metric.scale * value, metric.decimals)
