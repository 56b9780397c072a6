"""At equal bytes, does the vector code beat the best scalar one? Said plainly either way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import log10

from vqcompress.metrics import bytes_at_error, error_at_bytes
from vqcompress.report.comparison import Measure, Row, Verdict

MEASURES: tuple[Measure, ...] = ("denoiser_error", "psnr")


def verdicts(rows: Sequence[Row]) -> tuple[Verdict, ...]:
    """One verdict for each vector row and measure, in the order of the rows."""
    scalars = [row for row in rows if row.family == "scalar"]
    vectors = [row for row in rows if row.family == "vector"]
    return tuple(_verdict(row, measure, _rivals(row, scalars)) for row in vectors for measure in MEASURES)


def _rivals(row: Row, scalars: Sequence[Row]) -> Sequence[Row]:
    """All scalar rows; of a vector code with the same bits in every layer, those that have too, where there are any.

    Otherwise such a row would tell how far dealing out leads, not how far the code does.
    """
    uniform = [scalar for scalar in scalars if not scalar.allocated]
    return scalars if row.allocated or not uniform else uniform


def _verdict(row: Row, measure: Measure, scalars: Sequence[Row]) -> Verdict:
    asked = Verdict(row.label, row.method, measure, row.denoiser_bytes, getattr(row, measure))
    return _on_curve(asked, scalars) or _by_dominance(asked, scalars) or asked


def _on_curve(asked: Verdict, scalars: Sequence[Row]) -> Verdict | None:
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in scalars:
        curves[row.curve].append((row.denoiser_bytes, _error_of(row, asked.measure)))
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


def _by_dominance(asked: Verdict, scalars: Sequence[Row]) -> Verdict | None:
    error = _to_error(asked.value, asked.measure)
    worse = [r for r in scalars if r.denoiser_bytes >= asked.nbytes and _error_of(r, asked.measure) > error]
    better = [r for r in scalars if r.denoiser_bytes <= asked.nbytes and _error_of(r, asked.measure) < error]
    rivals = better or worse
    if not rivals:
        return None
    best = min(rivals, key=lambda row: (abs(row.denoiser_bytes - asked.nbytes), _error_of(row, asked.measure)))
    return replace(
        asked,
        basis="dominance",
        rival=best.label,
        rival_value=getattr(best, asked.measure),
        rival_bytes=best.denoiser_bytes,
        wins=not better,
    )


def _error_of(row: Row, measure: Measure) -> float:
    return _to_error(getattr(row, measure), measure)


def _to_error(value: float, measure: Measure) -> float:
    """PSNR is a logarithm already: as a mean squared error it has the same log-linear curve."""
    return 10 ** (-value / 10) if measure == "psnr" else value


def _from_error(error: float, measure: Measure) -> float:
    return -10 * log10(error) if measure == "psnr" else error
