"""The entropy-coded baseline of ``benchmarks/layer_error.py``."""

from __future__ import annotations

import pytest
import torch

from vqcompress.moments.rate_distortion import gap_in_bits, spectrum
from vqcompress.moments.second_moment import SecondMoment
from water_sic import entropy, water_sic


def test_entropy_of_known_shares():
    assert entropy(torch.tensor([0, 0, 1, 2])) == pytest.approx(1.5)
    assert entropy(torch.zeros(7)) == 0


def test_a_uniform_quantizer_with_ideal_entropy_coding_is_a_quarter_bit_above_the_bound():
    """Ziv's 1/2 log2(2 pi e / 12) = .2546 bit at high rate, and the stored steps."""
    weight = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    decoded, bits = water_sic(weight, None, 4.0)
    error = float((weight - decoded).square().sum() / weight.square().sum())
    assert 3.98 < bits <= 4.0
    gap = gap_in_bits(spectrum(SecondMoment(torch.eye(16))), bits, error)
    assert gap == pytest.approx(0.2546 + 16 / 4096, abs=0.01)
