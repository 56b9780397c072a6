"""Error feedback from few samples does what it does with the square that they stand for."""

from __future__ import annotations

import pytest
import torch

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.coordinate_descent import descend
from vqcompress.quantizers.error_feedback import BLOCK, prepare_feedback
from vqcompress.quantizers.layer_error import relative_error

COLUMNS, SAMPLES = 2 * BLOCK + 30, 20


@pytest.fixture
def moment() -> SecondMoment:
    draw = torch.Generator().manual_seed(0)
    sizes = torch.linspace(0.2, 3.0, COLUMNS)
    return SecondMoment(samples=torch.randn(SAMPLES, COLUMNS, generator=draw) * sizes / SAMPLES**0.5, ridge=0.05)


@pytest.fixture
def weight() -> torch.Tensor:
    return 3 * torch.randn(COLUMNS, 17, generator=torch.Generator().manual_seed(1))


def to_grid(column: int, target: torch.Tensor) -> torch.Tensor:
    return target.round()


def test_the_square_is_what_it_says(moment, weight):
    dense = moment.dense()
    torch.testing.assert_close(moment.diagonal(), dense.diagonal())
    torch.testing.assert_close(moment @ weight, dense @ weight, rtol=1e-4, atol=1e-3)
    assert moment.power(weight.t()) == pytest.approx(float((weight * (dense @ weight)).sum()), rel=1e-5)
    assert moment.shape == dense.shape


@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_order_and_sensitivity_are_those_of_the_square(moment, damping):
    few, square = prepare_feedback(moment, damping), prepare_feedback(SecondMoment(moment.dense().double()), damping)
    assert torch.equal(few.order, square.order)
    torch.testing.assert_close(few.sensitivity, square.sensitivity, rtol=1e-4, atol=0)


def test_the_sweep_is_that_of_the_square(moment, weight):
    few = prepare_feedback(moment).sweep(weight, to_grid)
    square = prepare_feedback(SecondMoment(moment.dense().double())).sweep(weight, to_grid)
    # Rounding moves a few targets across the middle between two grid points, and what follows goes another way.
    assert (few != square).float().mean() < 0.02
    error = relative_error(weight.t(), few.t(), moment)
    assert error == pytest.approx(relative_error(weight.t(), square.t(), moment), rel=0.02)
    assert error < 0.7 * relative_error(weight.t(), weight.t().round(), moment)


def test_coordinate_descent_is_that_of_the_square(moment, weight):
    few, accepted = descend(weight, weight.round(), moment, to_grid)
    square, there = descend(weight, weight.round(), moment.as_square(), to_grid)
    assert (few != square).float().mean() < 0.02
    assert (accepted != there).float().mean() < 0.02
    assert moment.power((weight - few).t()) < 0.8 * moment.power((weight - weight.round()).t())


@pytest.mark.parametrize("method", ["trellis", "gptq"])
def test_quantizers_take_either(moment, method):
    weight = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(2))
    settings = (
        TrellisSettings(state_bits=8, row_scales=False, rotation=False, tail=0.0) if method == "trellis" else None
    )
    codes = [quantize_weight(weight, h, method=method, bits=3, settings=settings) for h in (moment, moment.dense())]
    few, square = (relative_error(weight, each.decode(), moment) for each in codes)
    assert few == pytest.approx(square, rel=0.05)


def test_samples_without_a_ridge_are_damped(moment):
    bare = SecondMoment(samples=moment.samples)
    assert torch.isfinite(prepare_feedback(bare, 0.0).sensitivity).all()
