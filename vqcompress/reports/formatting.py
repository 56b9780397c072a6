"""Numbers as text, the same in Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vqcompress.metrics import Estimate
from vqcompress.reports.variant import Share

NONE = "–"
SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""


def size(nbytes: float) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point: ``5.61 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{significant(nbytes / scale, 3)}{SPACE}{unit}"
    return f"{nbytes:.0f}{SPACE}B"


def megabytes(nbytes: float) -> str:
    """Bytes in MB with two decimals, for columns whose sizes are compared."""
    return f"{nbytes / 1e6:,.2f}"


def significant(value: float, digits: int) -> str:
    """``value`` with ``digits`` significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return fixed(value, 0)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def fixed(value: float | None, decimals: int) -> str:
    """``value`` with ``decimals`` decimals; a dash for None and NaN, ``∞`` for infinity."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞"
    return f"{value:.{decimals}f}"


def percent(share: float | None, decimals: int) -> str:
    """``0.0123`` -> ``1.23 %``; small values get more than ``decimals``, so that two significant digits stay."""
    if share is None or (text := fixed(100 * share, decimals)) in (NONE, "∞"):
        return NONE
    return percent_short(share) if 0 < 100 * share < 10 ** (1 - decimals) else f"{text}{SPACE}%"


def percent_short(share: float) -> str:
    """A percentage with two significant digits, for running text."""
    return f"{significant(100 * share, 2)}{SPACE}%"


def percent_decimals(shares: Iterable[float]) -> int:
    """Decimals with which the smallest of a column of percentages keeps two significant digits, at most four."""
    positive = [100 * share for share in shares if share and math.isfinite(share) and share > 0]
    return min(4, max(1, 1 - math.floor(math.log10(min(positive))))) if positive else 1


def decibel(value: float) -> str:
    """``33.3 dB``."""
    return f"{fixed(value, 1)}{SPACE}dB"


def whole_percent(share: float) -> str:
    """``91 %``."""
    return f"{100 * share:.0f}{SPACE}%"


def span(estimate: Estimate, decimals: int, scale: float = 1.0) -> str:
    """``31.0–36.2``: the interval's ends, times ``scale``."""
    return f"{fixed(scale * estimate.low, decimals)}–{fixed(scale * estimate.high, decimals)}"


def signed_span(estimate: Estimate, scale: float = 1.0) -> str:
    """``-4 to +9``: the ends of a difference's interval, times ``scale``, in whole numbers."""
    return f"{scale * estimate.low:+.0f} to {scale * estimate.high:+.0f}"


def points(difference: Estimate) -> str:
    """``+6 points, -4 to +9``: a difference of two shares, in percentage points."""
    return f"{100 * difference.value:+.0f}{SPACE}points, {signed_span(difference, 100)}"


def interval(share: Share) -> str:
    """``86–95``: the interval's ends in whole percent."""
    return f"{100 * share.low:.0f}–{100 * share.high:.0f}"
