"""How often each expert of a mixture was chosen in calibration, and what its packing cost: rows come unevenly, and error with them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from vqcompress.checkpoint import LayerRecord
from vqcompress.report.comparison import Comparison, ExpertUse, Row
from vqcompress.report.formatting import NONE, percent_short
from vqcompress.report.table import Cell, Heading, Line, Table

EXPERT = re.compile(r"(?P<mixture>.*)\.experts\.(?P<number>\d+)\.")
NOTE = (
    "Rows are the tokens that calibration sent to each expert, in their order; errors are the mean over an expert's layers, on "
    "calibration inputs. An expert with fewer rows than columns borrows its second moment from the others of its mixture."
)


def expert_uses(records: Sequence[LayerRecord]) -> tuple[ExpertUse, ...]:
    """One entry for each routed expert, in the order of the layers; none for models without experts."""
    layers: dict[tuple[str, int], list[LayerRecord]] = defaultdict(list)
    for record in records:
        if found := EXPERT.match(record.layer):
            layers[found["mixture"], int(found["number"])].append(record)
    return tuple(_use(mixture, number, group) for (mixture, number), group in layers.items())


def _use(mixture: str, number: int, layers: list[LayerRecord]) -> ExpertUse:
    rows = [record.rows for record in layers if record.rows is not None]
    return ExpertUse(mixture, number, min(rows, default=None), fmean(record.error for record in layers))


def experts_table(comparison: Comparison) -> Table | None:
    """A line for each mixture of each variant: rows per expert, the least used one and its error; None without experts."""
    lines = [_line(row, mixture, uses) for row in comparison.rows for mixture, uses in _mixtures(row).items()]
    return Table(HEADINGS, tuple(lines)) if lines else None


HEADINGS = (
    Heading("rows", "per expert"),
    Heading("least used", "its rows"),
    Heading("its error", "relative"),
    Heading("others' error", "mean"),
)


def _mixtures(row: Row) -> dict[str, list[ExpertUse]]:
    grouped: dict[str, list[ExpertUse]] = defaultdict(list)
    for use in row.experts:
        grouped[use.mixture].append(use)
    return grouped


def _line(row: Row, mixture: str, uses: list[ExpertUse]) -> Line:
    counted = [use for use in uses if use.rows is not None]
    label = f"{row.label}, {mixture}"
    if not counted:
        return Line(label, row.curve, (Cell(NONE), Cell(NONE), Cell(NONE), Cell(percent_short(_mean(uses)))))
    least = min(counted, key=lambda use: use.rows or 0)
    others = [use for use in uses if use is not least]
    cells = (
        Cell(" ".join(f"{use.rows:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for use in counted)),
        Cell(f"expert {least.expert}", f"({least.rows})"),
        Cell(percent_short(least.error)),
        Cell(percent_short(_mean(others)) if others else NONE),
    )
    return Line(label, row.curve, cells)


def _mean(uses: Sequence[ExpertUse]) -> float:
    return fmean(use.error for use in uses)
