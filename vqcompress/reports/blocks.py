"""The first variant's layers, block by block: errors, bits, what was kept dense or aside, and the gap to the limit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from vqcompress.reports.comparison import Comparison
from vqcompress.reports.formatting import NONE, fixed, percent_short
from vqcompress.reports.plots import block_of
from vqcompress.reports.table import Cell, Heading, Line, Table
from vqcompress.reports.variant import LayerError, Variant

NOTE = (
    "Blocks in execution order. Kept dense are layers that the recipe asked for and that stayed in 16 bits; scalar are "
    "those whose code is a scalar one; outliers are single weights in 16 bits. The gap is what a layer spends above "
    "the rate-distortion bound of Gaussian weights, in bits a weight, by the inputs of calibration."
)
HEADINGS = (
    Heading("layers"),
    Heading("error", "mean"),
    Heading("worst", "layer, error"),
    Heading("bits", "mean"),
    Heading("kept", "dense"),
    Heading("scalar"),
    Heading("outliers"),
    Heading("gap", "bits, mean"),
)


def blocks_table(comparison: Comparison) -> Table | None:
    """A line for each block of the first variant; None where no layer was measured."""
    lead = comparison.variants[0]
    grouped = [(block, list(layers)) for block, layers in groupby(lead.layer_errors, key=lambda e: block_of(e.layer))]
    lines = tuple(_line(block, layers, lead) for block, layers in grouped)
    return Table(HEADINGS, lines) if lines else None


def _line(block: str, layers: Sequence[LayerError], lead: Variant) -> Line:
    worst = max(layers, key=lambda each: each.error)
    gaps = [each.gap for each in layers if each.gap is not None]
    cells = (
        Cell(str(len(layers))),
        Cell(percent_short(fmean(each.error for each in layers))),
        Cell(percent_short(worst.error), worst.layer),
        Cell(fixed(fmean(each.bits for each in layers), 2)),
        Cell(str(sum(block_of(name) == block for name in lead.dense_layers))),
        Cell(str(sum(each.is_scalar for each in layers))),
        Cell(str(sum(each.outliers for each in layers))),
        Cell(fixed(fmean(gaps), 3) if gaps else NONE),
    )
    return Line(block, "", cells)
