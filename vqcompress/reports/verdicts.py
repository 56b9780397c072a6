"""Does the vector code have less error than scalar codes and other packages of its size? The verdicts, and their words.

Nothing is interpolated: a variant is compared with the measured ones next to it in bytes, on the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf, isnan
from typing import Literal, get_args

from vqcompress.metrics import Estimate, median, paired_difference, ratio_of_sums
from vqcompress.reports.comparison import Measure, Outcome, Rival, Verdict
from vqcompress.reports.formatting import SPACE, decibel, fixed, percent_short, points, significant, size
from vqcompress.reports.variant import Variant

MEASURES: tuple[Measure, ...] = ("denoiser_error", "psnr")
SAME_SIZE = 0.005
"""Part of the bytes within which two variants have one size."""
Overall = Literal["worse", "mixed", "level", "better in error only", "better in images only", "better", "open"]
"""What is said first, first: where the code is not ahead, a reader should not have to look for it."""


def verdicts(variants: Sequence[Variant]) -> tuple[Verdict, ...]:
    """One verdict for each vector variant and measure, in the order of the variants."""
    others = [variant for variant in variants if variant.family != "vector"]
    vectors = [variant for variant in variants if variant.family == "vector"]
    return tuple(_verdict(variant, measure, _rivals(variant, others)) for variant in vectors for measure in MEASURES)


def _rivals(variant: Variant, others: Sequence[Variant]) -> Sequence[Variant]:
    """Those whose bits were allocated as the variant's: against the others, the verdict would be about allocation and
    not about the code."""
    return [other for other in others if other.allocated == variant.allocated]


def _verdict(variant: Variant, measure: Measure, others: Sequence[Variant]) -> Verdict:
    front = _front(others, measure)
    nbytes = variant.denoiser_bytes
    larger = [other for other in front if other.denoiser_bytes >= nbytes * (1 - SAME_SIZE)]
    smaller = [other for other in front if other.denoiser_bytes <= nbytes * (1 + SAME_SIZE)]
    above = _rival(variant, min(larger, key=_size), measure) if larger else None
    below = _rival(variant, max(smaller, key=_size), measure) if smaller else None
    value = _value(variant, measure)
    return Verdict(variant.label, variant.method, measure, nbytes, value, _outcome(measure, above, below), above, below)


def _size(variant: Variant) -> int:
    return variant.denoiser_bytes


def _front(variants: Sequence[Variant], measure: Measure) -> list[Variant]:
    """Those that no other beats: by rising bytes, each has less error than all smaller ones."""
    front: list[Variant] = []
    for variant in sorted(variants, key=lambda each: (each.denoiser_bytes, _error(each, measure))):
        if not front or _error(variant, measure) < _error(front[-1], measure):
            front.append(variant)
    return front


def _error(variant: Variant, measure: Measure) -> float:
    """What is lower for the better variant; infinite where the value is no number."""
    value = _value(variant, measure)
    return inf if isnan(value) else -value if measure == "psnr" else value


def _value(variant: Variant, measure: Measure) -> float:
    if measure == "denoiser_error":
        return variant.denoiser_error
    return variant.psnr_median.value if variant.psnr_median else variant.image_metrics["psnr_median"]


def _rival(variant: Variant, other: Variant, measure: Measure) -> Rival:
    captions = variant.captions_against(other.right_images) if measure == "psnr" else None
    difference = _difference(variant, other, measure)
    return Rival(other.label, other.denoiser_bytes, _value(other, measure), difference, captions)


def _difference(variant: Variant, other: Variant, measure: Measure) -> Estimate:
    """Paired over the same images; without images of its own, a bare value with no interval."""
    if measure == "psnr":
        ours, theirs = variant.image_values.get("psnr", ()), other.image_values.get("psnr", ())
        if ours and len(ours) == len(theirs):
            return paired_difference(ours, theirs, median)
        value = _value(variant, measure) - _value(other, measure)
    else:
        if variant.energies and len(variant.energies) == len(other.energies):
            return ratio_of_sums([error for error, _ in variant.energies], [error for error, _ in other.energies])
        value = variant.denoiser_error / other.denoiser_error if other.denoiser_error else inf
    return Estimate(value, -inf, inf, 0)


def _outcome(measure: Measure, larger: Rival | None, smaller: Rival | None) -> Outcome:
    if smaller and _differs(measure, smaller.difference) == "worse":
        return "worse"
    if larger and (found := _differs(measure, larger.difference)) in ("better", "level"):
        return found
    return "open"


def _differs(measure: Measure, difference: Estimate) -> Outcome:
    same = 0.0 if measure == "psnr" else 1.0
    if isnan(difference.value) or difference.count < 2:
        return "open"
    if not difference.excludes(same):
        return "level"
    return "better" if (difference.value > same) == (measure == "psnr") else "worse"


@dataclass(frozen=True)
class VerdictLine:
    """The verdict on one variant in words, or on all those without a rival."""

    outcome: Overall
    subject: str
    text: str

    @property
    def style(self) -> str:
        """Class of the line on the page: that of a plain outcome."""
        return "level" if self.outcome.endswith("only") else self.outcome


def verdict_lines(verdicts: Sequence[Verdict]) -> list[VerdictLine]:
    """A line for each variant that has a neighbour, the worst first, and one for all that have none."""
    grouped = [(label, list(group)) for label, group in groupby(verdicts, key=lambda verdict: verdict.label)]
    known = [(label, group) for label, group in grouped if any(each.larger or each.smaller for each in group)]
    lines = [VerdictLine(_overall(group), label, _text(group)) for label, group in known]
    lines.sort(key=lambda line: get_args(Overall).index(line.outcome))
    return [*lines, *_open([group[0] for label, group in grouped if label not in dict(known)])]


def _overall(group: Sequence[Verdict]) -> Overall:
    by_measure = {verdict.measure: verdict.outcome for verdict in group}
    found = set(by_measure.values()) - {"open"}
    if {"better", "worse"} <= found:
        return "mixed"
    if found == {"level"} and "open" in by_measure.values():
        return "open"  # level with a larger one by one measure, behind it by the other
    if "better" in found and ("level" in by_measure.values() or any(map(_behind, group))):
        return "better in error only" if by_measure["denoiser_error"] == "better" else "better in images only"
    ranked: tuple[Overall, ...] = ("worse", "better", "level")
    return next((outcome for outcome in ranked if outcome in found), "open")


def _behind(verdict: Verdict) -> bool:
    """Whether the next larger one is ahead: that is open, because it has more bytes, but nothing to call better."""
    larger = verdict.larger
    return verdict.outcome == "open" and larger is not None and _differs(verdict.measure, larger.difference) == "worse"


def _open(verdicts: Sequence[Verdict]) -> Iterator[VerdictLine]:
    if verdicts:
        labels = ", ".join(f"{verdict.label} ({size(verdict.nbytes)})" for verdict in verdicts)
        yield VerdictLine("open", labels, "alone: nothing with bits allocated in the same way was measured beside it.")


def _text(group: Sequence[Verdict]) -> str:
    clauses = [clause for verdict in group for clause in _clauses(verdict)]
    return f"at {size(group[0].nbytes)}: {'; '.join(clauses)}."


def _clauses(verdict: Verdict) -> Iterator[str]:
    """The neighbour that decides; both of them where neither does."""
    pairs = [("larger", verdict.larger), ("smaller", verdict.smaller)]
    deciding = {"better": "larger", "level": "larger", "worse": "smaller"}.get(verdict.outcome)
    for relation, rival in pairs:
        if rival is not None and deciding in (None, relation):
            yield _clause(verdict, relation, rival)


def _clause(verdict: Verdict, relation: str, rival: Rival) -> str:
    change = rival.nbytes / verdict.nbytes - 1
    much = "of the same size" if abs(change) <= SAME_SIZE else f"{abs(100 * change):.0f}{SPACE}% {relation}"
    against = f"for {rival.label}, {much}"
    return f"{_values(verdict, rival)} {against} ({_gap(verdict.measure, rival.difference)}){_captions(rival)}"


def _captions(rival: Rival) -> str:
    """``, caption accuracy +6 points, -1 to +13``"""
    return "" if rival.captions is None else f", caption accuracy {points(rival.captions)}"


def _values(verdict: Verdict, rival: Rival) -> str:
    if verdict.measure == "psnr":
        return f"median PSNR {decibel(verdict.value)} against {decibel(rival.value)}"
    return f"denoiser error {percent_short(verdict.value)} against {percent_short(rival.value)}"


def _gap(measure: Measure, difference: Estimate) -> str:
    """``differs: +4.9 dB, interval +4.1 to +5.6, 48 images``"""
    if measure == "psnr":
        value, low, high = (f"{each:+.1f}" for each in (difference.value, difference.low, difference.high))
        value += f"{SPACE}dB"
    else:
        value, low, high = (_times(each) for each in (difference.value, difference.low, difference.high))
        value += " times the error"
    if not difference.count:
        return value
    said = "does not differ" if _differs(measure, difference) == "level" else "differs"
    return f"{said}: {value}, interval {low} to {high}, {difference.count} images"


def _times(value: float) -> str:
    return significant(value, 2) if 0 < value < inf else fixed(value, 0)
