"""Error feedback from few rows does what it does with the square that they stand for."""

from __future__ import annotations

import pytest
import torch

from vqcompress.moments.low_rank import BLOCK, RowMoment
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.error_feedback import prepare_feedback, refine, sweep
from vqcompress.quantizers.layer_error import relative_error

COLUMNS, ROWS = 2 * BLOCK + 30, 20


@pytest.fixture
def moment() -> RowMoment:
    draw = torch.Generator().manual_seed(0)
    sizes = torch.linspace(0.2, 3.0, COLUMNS)
    return RowMoment(torch.randn(ROWS, COLUMNS, generator=draw) * sizes / ROWS**0.5, 0.05)


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
    few, square = prepare_feedback(moment, damping), prepare_feedback(moment.dense().double(), damping)
    assert torch.equal(few.order, square.order)
    torch.testing.assert_close(few.sensitivity, square.sensitivity, rtol=1e-4, atol=0)


def test_the_sweep_is_that_of_the_square(moment, weight):
    few = sweep(weight, prepare_feedback(moment), to_grid)
    square = sweep(weight, prepare_feedback(moment.dense().double()), to_grid)
    # Rounding moves a few targets across the middle between two grid points, and what follows goes another way.
    assert (few != square).float().mean() < 0.02
    error = relative_error(weight.t(), few.t(), moment)
    assert error == pytest.approx(relative_error(weight.t(), square.t(), moment), rel=0.02)
    assert error < 0.7 * relative_error(weight.t(), weight.t().round(), moment)


def test_refining_is_that_of_the_square(moment, weight):
    few, accepted = refine(weight, weight.round(), moment, to_grid)
    square, there = refine(weight, weight.round(), moment.dense(), to_grid)
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


def test_rows_without_a_ridge_are_damped(moment):
    bare = RowMoment(moment.inputs, 0.0)
    assert torch.isfinite(prepare_feedback(bare, 0.0).sensitivity).all()
