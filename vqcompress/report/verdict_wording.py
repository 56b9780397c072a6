"""Verdicts at equal bytes in words: one line a variant, its losses as plain as its gains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from vqcompress.report.comparison import Verdict
from vqcompress.report.formatting import SPACE, decibel, percent_short, significant, size

MANIFOLD = 2.0  # from here on a ratio reads better than a percentage, downwards from its third power on
Outcome = Literal["better", "worse", "mixed", "open"]


@dataclass(frozen=True)
class VerdictLine:
    """What is said of a variant, or of all those that nothing can be said of."""

    outcome: Outcome
    subject: str
    text: str


def verdict_lines(verdicts: Sequence[Verdict]) -> list[VerdictLine]:
    """A line for each variant that can be compared, and one for all that cannot."""
    grouped = [(label, list(group)) for label, group in groupby(verdicts, key=lambda verdict: verdict.label)]
    known = [(label, group) for label, group in grouped if _outcome(group) != "open"]
    lines = [VerdictLine(_outcome(group), label, _text(group)) for label, group in known]
    return [*lines, *_open([group[0] for _, group in grouped if _outcome(group) == "open"])]


def _outcome(group: Sequence[Verdict]) -> Outcome:
    outcomes = {verdict.wins for verdict in group if verdict.wins is not None}
    if not outcomes:
        return "open"
    return "mixed" if len(outcomes) == 2 else "better" if outcomes.pop() else "worse"


def _open(verdicts: Sequence[Verdict]) -> Iterator[VerdictLine]:
    if verdicts:
        labels = ", ".join(f"{verdict.label} ({size(verdict.nbytes)})" for verdict in verdicts)
        yield VerdictLine("open", labels, "no scalar code was measured near enough in size for a fair comparison.")


def _text(group: Sequence[Verdict]) -> str:
    clauses = [_clause(verdict) for verdict in group if verdict.rival_value is not None]
    return f"at {size(group[0].nbytes)}: {'; '.join(clauses)}.{_equivalent(group[0])}"


def _clause(verdict: Verdict) -> str:
    rival = verdict.rival_value or 0.0
    if verdict.measure == "psnr":
        values = f"PSNR {decibel(verdict.value)} against {decibel(rival)}"
    else:
        values = f"denoiser error {percent_short(verdict.value)} against {percent_short(rival)}"
    if verdict.basis == "dominance":
        relation = "larger" if verdict.wins else "smaller"
        return f"{values} of the {relation} {verdict.rival} ({size(verdict.rival_bytes or 0)})"
    return f"{values} of {verdict.rival}, {_gap(verdict, rival)}"


def _gap(verdict: Verdict, rival: float) -> str:
    if verdict.measure == "psnr":
        return f"{verdict.value - rival:+.1f}{SPACE}dB"
    ratio = verdict.value / rival
    if ratio > MANIFOLD:
        return f"{significant(ratio, 2)} times as high"
    if 0 < ratio < 1 / MANIFOLD**3:
        return f"1/{1 / ratio:.0f} of it"
    return f"{abs(100 * (ratio - 1)):.0f}{SPACE}% {'lower' if ratio < 1 else 'higher'}"


def _equivalent(verdict: Verdict) -> str:
    """What the rival takes for the same: said of the first measure, the denoiser's error."""
    if verdict.basis != "curve" or verdict.rival_bytes is None:
        return ""
    change = 100 * (verdict.rival_bytes / verdict.nbytes - 1)
    direction = "more" if change > 0 else "less"
    return f" {verdict.rival} takes {size(verdict.rival_bytes)} for that error, {abs(change):.0f}{SPACE}% {direction}."
