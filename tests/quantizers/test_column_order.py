"""The order of columns that fits the rates there are: a permutation, never dearer, and of use to the trellis."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vqcompress.formats.trellis_table import gaussian_error
from vqcompress.moments.rate_distortion import water_level
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import AdditiveSettings, TrellisSettings, quantize_weight
from vqcompress.quantizers.column_order import fitted_order, price_of_a_bit
from vqcompress.quantizers.error_feedback import CORNER, FeedbackPlanner, prepare_feedback

HALF_BITS = {rate / 2: gaussian_error(12, rate / 2) for rate in range(12)}


def moment(columns: int, samples: int = 4096, seed: int = 0) -> SecondMoment:
    """Of correlated inputs whose strengths spread over two orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, columns, generator=generator) * torch.logspace(0, -2, columns)
    inputs = inputs @ torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    return SecondMoment(inputs.t() @ inputs / samples)


def cheapest(pivots: Tensor, price: float) -> float:
    """What columns cost that each take their best rate."""
    left, rates = torch.tensor(list(HALF_BITS.values())).double(), torch.tensor(list(HALF_BITS)).double()
    return float((pivots[:, None] * left + price * rates).min(1).values.sum())


def test_the_price_of_a_bit_spends_the_bits() -> None:
    costs = torch.logspace(1, -3, 400, dtype=torch.float64)
    price = price_of_a_bit(costs, 3.0, HALF_BITS)
    left, rates = torch.tensor(list(HALF_BITS.values())).double(), torch.tensor(list(HALF_BITS)).double()
    chosen = rates[(costs[:, None] * left + price * rates).argmin(1)]
    assert float(chosen.mean()) == pytest.approx(3.0, abs=0.01)
    # Of codes at the limit, D(r) = 4^-r, a bit saves 2 ln 2 times the error that is left.
    limit = {rate / 20: 4.0 ** (-rate / 20) for rate in range(200)}
    price = price_of_a_bit(costs, 3.0, limit)
    assert price == pytest.approx(2 * math.log(2) * water_level(costs, 3.0), rel=0.05)


def test_exchanged_columns_cost_less_and_their_pivots_have_the_same_product() -> None:
    found = prepare_feedback(moment(96), 0.0)
    price = price_of_a_bit(found.pivots(), 3.0, HALF_BITS)
    order = fitted_order(found.order, found.corners(), torch.ones(96), HALF_BITS, price)
    assert order.sort().values.tolist() == list(range(96))
    assert order.tolist() != found.order.tolist()
    again = prepare_feedback(moment(96), 0.0, order=order)
    assert again.order.tolist() == order.tolist()
    assert float(again.pivots().log2().sum()) == pytest.approx(float(found.pivots().log2().sum()), abs=1e-4)
    ideal = cheapest(found.pivots(), price) - price * 0.0144 * 96  # no loss by rounding at all
    assert ideal < cheapest(again.pivots(), price) < cheapest(found.pivots(), price) - price * 0.003 * 96


def test_a_column_with_heavier_weights_counts_by_their_energy() -> None:
    """Weights of other sizes are inputs of other sizes."""
    plain, sizes = moment(64), torch.logspace(-0.5, 0.5, 64)
    scaled = SecondMoment(plain.dense() * sizes * sizes[:, None])
    found, other = prepare_feedback(plain, 0.0), prepare_feedback(scaled, 0.0, order=prepare_feedback(plain, 0.0).order)
    price = price_of_a_bit(other.pivots(), 3.0, HALF_BITS)
    here = fitted_order(found.order, found.corners(), sizes.square(), HALF_BITS, price)
    there = fitted_order(other.order, other.corners(), torch.ones(64), HALF_BITS, price)
    assert here.tolist() == there.tolist()


def test_a_moment_of_zeros_keeps_its_order() -> None:
    assert fitted_order(torch.arange(8), [torch.eye(8)], torch.zeros(8), HALF_BITS, 0.0).tolist() == list(range(8))
    assert price_of_a_bit(torch.zeros(8), 3.0, HALF_BITS) == 0.0


def test_columns_stay_in_their_block() -> None:
    columns = CORNER + 20
    found = prepare_feedback(moment(columns, samples=2000), 1e-3)
    corners = found.corners()
    assert [len(corner) for corner in corners] == [columns // 2] * 2
    price = price_of_a_bit(found.pivots(), 3.0, HALF_BITS)
    order = fitted_order(found.order, corners, torch.ones(columns), HALF_BITS, price)
    half = columns // 2
    assert set(order[:half].tolist()) == set(found.order[:half].tolist())
    again = prepare_feedback(moment(columns, samples=2000), 1e-3, order=order)
    assert cheapest(again.pivots(), price) < cheapest(found.pivots(), price)


def test_uncorrelated_inputs_keep_their_order() -> None:
    found = prepare_feedback(SecondMoment(torch.diag(torch.logspace(0, -2, 50))), 0.0)
    assert fitted_order(found.order, found.corners(), torch.ones(50), HALF_BITS, 1e-4).tolist() == found.order.tolist()


def test_without_a_factor_the_order_is_what_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    few = SecondMoment(samples=torch.randn(8, 64, generator=generator), ridge=0.01)
    planner = FeedbackPlanner(few, 1e-3)
    assert planner.in_fitted_order(torch.ones(64), 3.0, HALF_BITS, 1.0) is planner


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("trellis", TrellisSettings(state_bits=10, tail=0.0, row_scales=False, rotation=False)),
        ("additive", AdditiveSettings(beam=8, coordinate_descent=0, row_scales=False, column_scales=False)),
    ],
)
@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_codes_have_less_error_with_it(
    method: str, settings: TrellisSettings | AdditiveSettings, bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(256, 320, generator=generator), moment(320, seed=2)

    def error() -> float:
        found = quantize_weight(weight, inputs, method=method, bits=bits, settings=settings)
        off = (weight - found.decode()).double()
        assert found.bits_per_weight <= bits
        return float(((off @ inputs.dense().double()) * off).sum())

    fitted = error()
    monkeypatch.setattr(FeedbackPlanner, "in_fitted_order", lambda self, *rest: self)
    assert fitted < 0.996 * error()
