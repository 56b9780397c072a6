"""The table of what each compressed component costs, for variants that have several."""

from __future__ import annotations

from vqcompress.report.comparison import Comparison, ComponentCost, Row
from vqcompress.report.formatting import fixed, megabytes
from vqcompress.report.table import Cell, Heading, Line, Table

HEADINGS = (Heading("all bits", "whole component"), Heading("size", "MB"), Heading("PSNR", "dB"), Heading("SSIM"))
NOTE = "Only this component is compressed, all others are the original's; the first prompts, under the same seeds."


def components_table(comparison: Comparison) -> Table | None:
    """A line for each component of each variant with more than one; None where there is no such variant."""
    lines = [_line(row, cost) for row in comparison.rows for cost in row.components]
    return Table(HEADINGS, tuple(lines)) if lines else None


def _line(row: Row, cost: ComponentCost) -> Line:
    cells = fixed(cost.bits, 2), megabytes(cost.nbytes), fixed(cost.psnr, 1), fixed(cost.ssim, 3)
    return Line(f"{row.label}, {cost.component}", row.curve, tuple(map(Cell, cells)))
