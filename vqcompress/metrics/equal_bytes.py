"""What error does a family of codes have at a given size? Interpolated on its measured curve of error by bytes.

Between neighbouring measured points, the logarithm of the error is taken as linear in the bytes: quantization error
falls by about 6 dB per bit. Outside the measured range the answer is ``None``; nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

Point = tuple[float, float]
"""``(bytes, error)`` of one measured variant."""


def error_at_bytes(curve: Iterable[Point], nbytes: float) -> float | None:
    """Error of the family at ``nbytes``, or ``None`` outside what was measured.

    Points without a positive, finite error have no logarithm and are left out. Of two points with the same bytes, the
    one with less error counts.
    """
    return _interpolate(_logarithmic(curve), nbytes, into=math.exp)


def bytes_at_error(curve: Iterable[Point], error: float) -> float | None:
    """Bytes at which the family reaches ``error``, or ``None`` where the curve does not pass it.

    The curve must fall: points with more bytes and more error than another are left out.
    """
    falling: list[Point] = []
    for nbytes, log_error in _logarithmic(curve):
        if not falling or log_error < falling[-1][1]:
            falling.append((nbytes, log_error))
    if error <= 0 or not math.isfinite(error):
        return None
    return _interpolate([(log_error, nbytes) for nbytes, log_error in reversed(falling)], math.log(error), into=float)


def _logarithmic(curve: Iterable[Point]) -> list[Point]:
    best: dict[float, float] = {}
    for nbytes, error in curve:
        if error > 0 and math.isfinite(error):
            best[nbytes] = min(math.log(error), best.get(nbytes, math.inf))
    return sorted(best.items())


def _interpolate(points: list[Point], x: float, into: Callable[[float], float]) -> float | None:
    for at, y in points:
        if at == x:
            return into(y)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < x < x1:
            return into(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    return None
