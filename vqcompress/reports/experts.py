"""How many calibration tokens each expert of a mixture got, and the error of its layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from vqcompress.checkpoint import LayerRecord
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.formatting import NONE, percent_short
from vqcompress.reports.table import Cell, Heading, Line, Table
from vqcompress.reports.variant import ExpertUse, Variant

EXPERT = re.compile(r"(?P<mixture>.*)\.experts\.(?P<number>\d+)\.")
NOTE = (
    "Tokens that calibration sent to each expert, in the experts' order. Errors are averages over an expert's layers, "
    "on calibration inputs. An expert with fewer tokens than columns borrows its second moment from the other experts "
    "of its mixture."
)
HEADINGS = (
    Heading("tokens", "per expert"),
    Heading("least used", "its tokens"),
    Heading("its error", "relative"),
    Heading("others' error", "mean"),
)


def expert_uses(records: Sequence[LayerRecord]) -> tuple[ExpertUse, ...]:
    """One entry for each routed expert, in the order of the layers; none for models without experts."""
    layers: dict[tuple[str, int], list[LayerRecord]] = defaultdict(list)
    for record in records:
        if found := EXPERT.match(record.layer):
            layers[found["mixture"], int(found["number"])].append(record)
    return tuple(_use(mixture, number, group) for (mixture, number), group in layers.items())


def _use(mixture: str, number: int, layers: list[LayerRecord]) -> ExpertUse:
    tokens = [record.rows for record in layers if record.rows is not None]
    return ExpertUse(mixture, number, min(tokens, default=None), fmean(record.error for record in layers))


def experts_table(comparison: Comparison) -> Table | None:
    """A line for each mixture of each variant; None without experts."""
    lines = [
        _line(variant, mixture, uses) for variant in comparison.variants for mixture, uses in _mixtures(variant).items()
    ]
    return Table(HEADINGS, tuple(lines)) if lines else None


def _mixtures(variant: Variant) -> dict[str, list[ExpertUse]]:
    grouped: dict[str, list[ExpertUse]] = defaultdict(list)
    for use in variant.experts:
        grouped[use.mixture].append(use)
    return grouped


def _line(variant: Variant, mixture: str, uses: list[ExpertUse]) -> Line:
    counted = [use for use in uses if use.tokens is not None]
    label = f"{variant.label}, {mixture}"
    if not counted:
        return Line(label, variant.curve, (Cell(NONE), Cell(NONE), Cell(NONE), Cell(percent_short(_mean(uses)))))
    least = min(counted, key=lambda use: use.tokens or 0)
    others = [use for use in uses if use is not least]
    cells = (
        Cell(" ".join(f"{use.tokens:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for use in counted)),
        Cell(f"expert {least.expert}", f"({least.tokens})"),
        Cell(percent_short(least.error)),
        Cell(percent_short(_mean(others)) if others else NONE),
    )
    return Line(label, variant.curve, cells)


def _mean(uses: Sequence[ExpertUse]) -> float:
    return fmean(use.error for use in uses)
