"""The rate-distortion bound against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from vqcompress.moments.rate_distortion import distortion_bound, gap_in_bits, gap_of_layer, spectrum, water_level
from vqcompress.moments.second_moment import SecondMoment


def test_the_water_level_spends_the_bits():
    costs = torch.tensor([64.0, 4.0, 4.0, 1e-9], dtype=torch.float64)
    level = water_level(costs, 1.5)
    rates = (costs / level).log2().clamp_min(0) / 2
    assert float(rates.sum()) == pytest.approx(6.0)
    assert float(rates[3]) == 0
    assert water_level(torch.zeros(3, dtype=torch.float64), 2.0) == 0


@pytest.mark.parametrize("bits", [0.5, 2.0, 4.0])
def test_white_inputs_have_shannons_bound(bits):
    assert distortion_bound(spectrum(SecondMoment(3 * torch.eye(7))), bits) == pytest.approx(4.0**-bits)


def test_two_levels_of_power():
    """Half of the components 16 times as strong. At 2 bits all are above the water, the geometric mean of powers over
    ``4**2``; at half a bit, one for each strong component, the weak ones are left at zero."""
    levels = torch.tensor([16.0, 16.0, 1.0, 1.0], dtype=torch.float64)
    assert distortion_bound(levels, 2.0) == pytest.approx(4 * (4 / 16) / 34)
    assert distortion_bound(levels, 0.5) == pytest.approx((2 * 16 / 4 + 2 * 1) / 34)


def test_a_turned_spectrum_is_the_same():
    levels = torch.tensor([5.0, 2.0, 0.3, 0.01], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())
    found = spectrum(SecondMoment(turn * levels @ turn.t()))
    torch.testing.assert_close(found.sort(descending=True).values, levels)


def test_few_samples_have_the_spectrum_of_their_square():
    moment = SecondMoment(samples=torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), ridge=0.1)
    square = spectrum(moment.as_square())
    torch.testing.assert_close(spectrum(moment).sort().values, square.sort().values, atol=1e-5, rtol=1e-5)


def test_the_gap_is_the_bits_that_the_bound_needs_fewer():
    levels = torch.linspace(1, 3, 50, dtype=torch.float64)
    assert gap_in_bits(levels, 3.1, distortion_bound(levels, 3.0)) == pytest.approx(0.1)
    assert math.isnan(gap_in_bits(levels, 3.0, 0.0))
    assert distortion_bound(torch.zeros(3), 2.0) == 0.0


def test_the_gap_of_a_layer():
    assert gap_of_layer(None, 3.0, 4.0**-2.9) == pytest.approx(0.1)
    assert gap_of_layer(SecondMoment(torch.diag(torch.tensor([4.0, 1.0]))), 2.0, 2 * (2 / 16) / 5) == pytest.approx(0.0)
    assert gap_of_layer(None, 3.0, 0.0) is None
