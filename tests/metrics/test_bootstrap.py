import math

import numpy as np
import pytest
from scipy.stats import binom

from vqcompress.errors import VQCompressError
from vqcompress.metrics import estimate, median, paired_difference, ratio_of_sums


def test_the_mean_of_two_values_has_the_interval_of_all_its_resamplings():
    found = estimate([1.0, 3.0])  # resampled means are 1, 2 and 3, with chances 1/4, 1/2 and 1/4
    assert (found.value, found.low, found.high, found.count) == (2.0, 1.0, 3.0, 2)


def test_the_interval_of_a_median_is_that_of_order_statistics():
    """A resampled median of an odd number of values is at most the k-th value if half of the draws are: a binomial."""
    values = np.arange(31.0)
    found = estimate(values[np.random.default_rng(1).permutation(31)].tolist(), median)
    at_most = [1 - binom.cdf(15, 31, (k + 1) / 31) for k in range(31)]
    low, high = (next(k for k, chance in enumerate(at_most) if chance >= level) for level in (0.025, 0.975))
    assert found.value == 15
    assert abs(found.low - low) <= 1
    assert abs(found.high - high) <= 1


def test_the_interval_of_a_mean_covers_it_about_nineteen_times_in_twenty():
    generator = np.random.default_rng(0)
    found = [estimate(generator.normal(size=40).tolist(), seed=trial) for trial in range(300)]
    covered = sum(each.low <= 0 <= each.high for each in found)
    assert 0.88 * 300 < covered < 0.99 * 300


def test_what_both_sides_share_cancels():
    hardness = np.random.default_rng(0).normal(scale=10, size=24)
    ours, theirs = (30 + hardness).tolist(), (29.8 + hardness + 0.1 * np.sin(range(24))).tolist()
    paired = paired_difference(ours, theirs)
    assert paired.value == pytest.approx(0.2, abs=0.05)
    assert paired.excludes(0)
    alone = estimate(ours)
    assert alone.low < np.mean(theirs) < alone.high


def test_equal_values_do_not_differ():
    found = paired_difference([1.0, 5.0, 2.0], [1.0, 5.0, 2.0], median)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.excludes(0)


def test_one_image_decides_nothing():
    found = paired_difference([1.0], [5.0])
    assert found.value == -4
    assert not found.excludes(0)


def test_ratios_are_of_sums():
    found = ratio_of_sums([1.0, 3.0], [2.0, 2.0])
    assert (found.value, found.low, found.high) == (1.0, 0.5, 1.5)
    assert ratio_of_sums([0.0], [0.0]).value == 1
    assert ratio_of_sums([1.0, 1.0], [0.0, 0.0]).value == math.inf


def test_infinite_values_stay_infinite_and_broken_ones_broken():
    lossless = estimate([math.inf] * 5, median)
    assert (lossless.value, lossless.low) == (math.inf, math.inf)
    assert estimate([30.0, math.inf, math.inf, math.inf, math.inf], median).value == math.inf
    broken = estimate([30.0, math.nan, 31.0])
    assert math.isnan(broken.value)
    assert not broken.excludes(0)


def test_the_same_values_have_the_same_interval():
    values = np.random.default_rng(3).normal(size=17).tolist()
    assert estimate(values, median) == estimate(values, median)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0, 2.0], [1.0])])
def test_other_images_are_refused(ours, theirs):
    with pytest.raises(VQCompressError, match="the same images on both sides"):
        paired_difference(ours, theirs)
