"""Does the vector code have less error than the best scalar code of the same size? The verdicts, and their words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import log10
from typing import Literal

from vqcompress.metrics import bytes_at_error, error_at_bytes
from vqcompress.report.comparison import Measure, Variant, Verdict
from vqcompress.report.formatting import SPACE, decibel, percent_short, significant, size

MEASURES: tuple[Measure, ...] = ("denoiser_error", "psnr")
MANIFOLD = 2.0  # from here on a ratio reads better than a percentage; below one, from its third power on
Outcome = Literal["better", "worse", "mixed", "open"]


def verdicts(variants: Sequence[Variant]) -> tuple[Verdict, ...]:
    """One verdict for each vector variant and measure, in the order of the variants."""
    scalars = [variant for variant in variants if variant.family == "scalar"]
    vectors = [variant for variant in variants if variant.family == "vector"]
    return tuple(_verdict(variant, measure, _rivals(variant, scalars)) for variant in vectors for measure in MEASURES)


def _rivals(variant: Variant, scalars: Sequence[Variant]) -> Sequence[Variant]:
    """The scalar variants to compare ``variant`` with.

    A vector code with the same bits in every layer is compared with scalar codes of the same kind, where there are any:
    against allocated bits, the verdict would be about the allocation and not about the code.
    """
    uniform = [scalar for scalar in scalars if not scalar.allocated]
    return scalars if variant.allocated or not uniform else uniform


def _verdict(variant: Variant, measure: Measure, scalars: Sequence[Variant]) -> Verdict:
    asked = Verdict(variant.label, variant.method, measure, variant.denoiser_bytes, getattr(variant, measure))
    return _on_curve(asked, scalars) or _by_dominance(asked, scalars) or asked


def _on_curve(asked: Verdict, scalars: Sequence[Variant]) -> Verdict | None:
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for variant in scalars:
        curves[variant.curve].append((variant.denoiser_bytes, _error_of(variant, asked.measure)))
    errors = {method: error_at_bytes(curve, asked.nbytes) for method, curve in curves.items()}
    measured = {method: error for method, error in errors.items() if error is not None}
    if not measured:
        return None
    best = min(measured, key=measured.__getitem__)
    error = _to_error(asked.value, asked.measure)
    return replace(
        asked,
        basis="curve",
        rival=best,
        rival_value=_from_error(measured[best], asked.measure),
        rival_bytes=bytes_at_error(curves[best], error),
        wins=error < measured[best],
    )


def _by_dominance(asked: Verdict, scalars: Sequence[Variant]) -> Verdict | None:
    error = _to_error(asked.value, asked.measure)
    worse = [r for r in scalars if r.denoiser_bytes >= asked.nbytes and _error_of(r, asked.measure) > error]
    better = [r for r in scalars if r.denoiser_bytes <= asked.nbytes and _error_of(r, asked.measure) < error]
    rivals = better or worse
    if not rivals:
        return None
    best = min(
        rivals, key=lambda variant: (abs(variant.denoiser_bytes - asked.nbytes), _error_of(variant, asked.measure))
    )
    return replace(
        asked,
        basis="dominance",
        rival=best.label,
        rival_value=getattr(best, asked.measure),
        rival_bytes=best.denoiser_bytes,
        wins=not better,
    )


def _error_of(variant: Variant, measure: Measure) -> float:
    return _to_error(getattr(variant, measure), measure)


def _to_error(value: float, measure: Measure) -> float:
    """``value`` as an error that falls log-linearly with the bytes; PSNR becomes a mean squared error."""
    return 10 ** (-value / 10) if measure == "psnr" else value


def _from_error(error: float, measure: Measure) -> float:
    return -10 * log10(error) if measure == "psnr" else error


@dataclass(frozen=True)
class VerdictLine:
    """The verdict on one variant in words, or on all those without a rival."""

    outcome: Outcome
    subject: str
    text: str


def verdict_lines(verdicts: Sequence[Verdict]) -> list[VerdictLine]:
    """A line for each variant that has a rival, and one for all that have none."""
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
        yield VerdictLine("open", labels, "no scalar code of a similar size was measured.")


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
        return f"{values} for the {relation} {verdict.rival} ({size(verdict.rival_bytes or 0)})"
    return f"{values} for {verdict.rival} ({_gap(verdict, rival)})"


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
    """The bytes that the rival needs for the same denoiser error."""
    if verdict.basis != "curve" or verdict.rival_bytes is None:
        return ""
    change = 100 * (verdict.rival_bytes / verdict.nbytes - 1)
    direction = "more" if change > 0 else "less"
    return (
        f" {verdict.rival} needs {size(verdict.rival_bytes)} for the same error, {abs(change):.0f}{SPACE}% {direction}."
    )
