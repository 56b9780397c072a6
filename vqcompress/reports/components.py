"""What each compressed component costs by itself, for variants that have several: measured, and as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from vqcompress.architectures import Architecture
from vqcompress.metrics import image_fidelity
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.drawing import Drawing, draw
from vqcompress.reports.formatting import fixed, megabytes
from vqcompress.reports.table import Cell, Heading, Line, Table
from vqcompress.reports.variant import ComponentCost, Variant

IMAGES = 12  # drawn anew for every component


def component_costs(
    original: Any,
    variant: Any,
    architecture: Architecture,
    drawing: Drawing,
    images: Tensor,
    parts: Mapping[str, Mapping[str, Any]],
    progress: Callable[[int, int], None],
) -> tuple[ComponentCost, ...]:
    """Image fidelity with one component of ``variant`` at a time in ``original``; none for a variant with only one.

    ``images`` are the original's of ``drawing``; ``parts`` is what `inspect` says of the variant's components.
    """
    if len(parts) < 2:
        return ()
    few = replace(drawing, prompts=drawing.prompts[:IMAGES])
    costs = []
    for done, (name, part) in enumerate(parts.items()):
        with _exchanged(original, name, getattr(variant, name)):
            drawn, _ = draw(original, architecture, few, lambda *_: None)
        found = image_fidelity(drawn, images[: len(drawn)])
        bits = part["component_bits_per_weight"]
        costs.append(ComponentCost(name, bits, part["bytes"], found["psnr"], found["ssim"]))
        progress(done + 1, len(parts))
    return tuple(costs)


@contextmanager
def _exchanged(pipeline: Any, name: str, component: Any) -> Iterator[None]:
    before = getattr(pipeline, name)
    setattr(pipeline, name, component)
    try:
        yield
    finally:
        setattr(pipeline, name, before)


HEADINGS = (Heading("bits", "whole component"), Heading("size", "MB"), Heading("PSNR", "dB"), Heading("SSIM"))
NOTE = (
    "In each line only this component is compressed and the others are the original's. Images are of the first "
    "prompts, from the same seeds."
)


def components_table(comparison: Comparison) -> Table | None:
    """A line for each component of each variant that has several; None without such a variant."""
    lines = [_line(variant, cost) for variant in comparison.variants for cost in variant.components]
    return Table(HEADINGS, tuple(lines)) if lines else None


def _line(variant: Variant, cost: ComponentCost) -> Line:
    cells = fixed(cost.bits, 2), megabytes(cost.nbytes), fixed(cost.psnr, 1), fixed(cost.ssim, 3)
    return Line(f"{variant.label}, {cost.component}", variant.curve, tuple(map(Cell, cells)))
