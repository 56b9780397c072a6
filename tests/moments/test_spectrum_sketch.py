"""Sketched eigenvalues against exact ones, of moments with spectra that networks have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.moments.rate_distortion import spectrum
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.spectrum_sketch import LARGEST_EXACT, SpectrumSketch

COLUMNS = LARGEST_EXACT + 88


def turned(eigenvalues: Tensor) -> Tensor:
    turn, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator()).double())
    return (turn * eigenvalues @ turn.t()).float()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


POWERS = {
    "falling as 1/i²": 1 / torch.arange(1, COLUMNS + 1).double() ** 2,
    "six decades": torch.logspace(0, -6, COLUMNS, dtype=torch.float64),
    "one direction above the rest": torch.cat([torch.tensor([1e4]), torch.ones(COLUMNS - 1)]).double(),
    "half of them dead": torch.cat([torch.ones(COLUMNS // 2), torch.zeros(COLUMNS - COLUMNS // 2)]).double(),
}


@pytest.mark.parametrize("name", POWERS)
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_bounds_are_those_of_all_eigenvalues(name, ridge):
    """Powers of 1e-6 are told apart from each other only roughly, where nothing is added to them."""
    powers = POWERS[name]
    found = SpectrumSketch.of(SecondMoment(turned(powers)))
    exact = SpectrumSketch(powers, torch.full_like(powers, 1 / COLUMNS))
    assert len(found.eigenvalues) < COLUMNS
    ridge *= float(powers.mean())
    assert found.bound(3.0, ridge) == pytest.approx(exact.bound(3.0, ridge), rel=0.2 if ridge else 0.5, abs=1e-12)


def test_small_moments_are_exact():
    moment = SecondMoment(turned(torch.linspace(0.1, 2, 20).double()))
    found = SpectrumSketch.of(moment)
    torch.testing.assert_close(found.eigenvalues, spectrum(moment))
    torch.testing.assert_close(found.shares, torch.full((20,), 0.05).double())


def test_kept_samples_have_the_sketch_of_their_square():
    samples = torch.randn(LARGEST_EXACT + 8, 700, generator=generator()) / 20
    moment = SecondMoment(samples=samples, ridge=0.05)
    kept, square = (SpectrumSketch.of(each) for each in (moment, moment.as_square()))
    assert kept.bound(2.0) == pytest.approx(square.bound(2.0), rel=1e-3)


def test_equal_moments_have_equal_sketches():
    first, second = (SpectrumSketch.of(SecondMoment(turned(POWERS["six decades"]))) for _ in range(2))
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert torch.equal(first.shares, second.shares)


def test_dead_inputs_have_nothing_to_lose():
    found = SpectrumSketch.of(SecondMoment(torch.zeros(COLUMNS, COLUMNS)))
    assert found.bound(3.0) == 0.0
