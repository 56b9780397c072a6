"""Intervals by bootstrap over images (Efron 1979, Annals of Statistics 7, 1-26; the percentile interval).

What two variants did on the same images is compared on the same resampled images, so that what both find hard cancels.
Seeded: the same values give the same interval. A percentile interval of few values is too narrow: that of 8 covers the
truth in about nine cases of ten instead of nineteen of twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqcompress.errors import VQCompressError

RESAMPLINGS = 4000
AT_ONCE = 1 << 22  # resampled values held at a time
CONFIDENCE = 0.95
Values = Sequence[float]
Statistic = Callable[[NDArray], NDArray]
"""``[resamplings, images]`` -> ``[resamplings]``."""


@dataclass(frozen=True)
class Estimate:
    """``value`` with its 95 % interval, and the number of images, ``count``, that it rests on."""

    value: float
    low: float
    high: float
    count: int

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside the interval; never where an end is not a number, or with one image."""
        return self.count > 1 and (self.low > value or self.high < value)


def mean(values: NDArray) -> NDArray:
    """Mean of each row."""
    return values.mean(-1)


def median(values: NDArray) -> NDArray:
    """Median of each row."""
    return np.median(values, -1)


def estimate(values: Values, statistic: Statistic = mean, *, seed: int = 0) -> Estimate:
    """``statistic`` of one value per image, with its interval. Raises `VQCompressError` without values."""
    return _interval([values], lambda x: statistic(x), seed)


def paired_difference(ours: Values, theirs: Values, statistic: Statistic = mean, *, seed: int = 0) -> Estimate:
    """``statistic(ours) - statistic(theirs)``, both of the same images in the same order.

    Raises `VQCompressError` without values, or for different numbers of them.
    """
    return _interval([ours, theirs], lambda x, y: statistic(x) - statistic(y), seed)


def ratio_of_sums(above: Values, below: Values, *, seed: int = 0) -> Estimate:
    """``Σ above / Σ below``, a value per image each: errors and signals, or the errors of two variants.

    0 / 0 is 1, x / 0 infinite. Raises `VQCompressError` without values, or for different numbers of them.
    """
    return _interval([above, below], lambda x, y: _ratio(x.sum(-1), y.sum(-1)), seed)


def _ratio(above: NDArray, below: NDArray) -> NDArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((above == 0) & (below == 0), 1.0, above / below)


def _interval(samples: Sequence[Values], statistic: Callable[..., NDArray], seed: int) -> Estimate:
    arrays = [np.asarray(values, dtype=np.float64) for values in samples]
    count = len(arrays[0])
    if not count or any(array.shape != (count,) for array in arrays):
        sizes = ", ".join(str(len(array)) for array in arrays)
        raise VQCompressError(f"an interval needs one value per image, the same images on both sides; got {sizes}")
    # What is not finite (identical images have an infinite PSNR) must not become a warning on the way to a NaN.
    with np.errstate(invalid="ignore"):
        value = float(statistic(*(array[None] for array in arrays))[0])
        resampled = np.concatenate([statistic(*(a[index] for a in arrays)) for index in _indices(count, seed)])
    low, high = _quantiles(resampled)
    return Estimate(value, low, high, count)


def _indices(count: int, seed: int):
    """Which images each resampling takes, ``[some, count]`` at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLINGS, AT_ONCE // count))
    for first in range(0, RESAMPLINGS, rows):
        yield generator.integers(count, size=(min(rows, RESAMPLINGS - first), count))


def _quantiles(resampled: NDArray) -> tuple[float, float]:
    """The interval's ends, which are resampled values themselves: between two infinite ones nothing is interpolated."""
    if np.isnan(resampled).any():
        return float("nan"), float("nan")
    beyond = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [beyond, 1 - beyond], method="inverted_cdf")
    return float(low), float(high)
