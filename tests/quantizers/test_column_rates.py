"""Water-filling against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from vqcompress.quantizers.column_rates import allocate_rates, plan_rates

DISTORTION = {0: 1.0, 1: 0.28, 2: 0.07, 3: 0.018, 4: 0.0046, 5: 0.0012}


def spread(columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)).mul(2).exp().double()


def cost(sensitivity, rates) -> float:
    return sum(float(s) * DISTORTION[int(r)] for s, r in zip(sensitivity, rates, strict=True))


@pytest.mark.parametrize("budget", [0, 1, 7, 10, 15, 30])
def test_allocation_is_optimal(budget):
    sensitivity = spread(5)
    rates = allocate_rates(sensitivity, [DISTORTION[r] for r in range(4)], 0, lambda rate: rate, budget)
    options = (r for r in itertools.product(range(4), repeat=5) if sum(r) <= budget)
    assert cost(sensitivity, rates) == pytest.approx(min(cost(sensitivity, r) for r in options))
    assert int(rates.sum()) <= budget


def test_plan_is_within_budget_and_beats_one_rate():
    sensitivity, budget = spread(64), 64 * 30
    plan = plan_rates(sensitivity, DISTORTION, lambda rate: 10 * rate, budget)
    stored = (64 * plan.rate_bits + 7) // 8 if plan.rate_bits else 0
    assert 10 * int(plan.rates.sum()) + stored <= budget
    assert cost(sensitivity, plan.rates) < 0.7 * cost(sensitivity, [3] * 64)
    assert plan.min_rate <= int(plan.rates.min())
    assert int(plan.rates.max()) < plan.min_rate + (1 << plan.rate_bits)


def test_equal_columns_store_no_rates():
    plan = plan_rates(torch.ones(64), DISTORTION, lambda rate: 10 * rate, 64 * 30)
    assert (plan.rate_bits, plan.min_rate) == (0, 3)


def test_everything_gets_the_most_when_the_budget_allows():
    plan = plan_rates(spread(8), DISTORTION, lambda rate: rate, 1000)
    assert plan.rates.tolist() == [5] * 8


def test_nothing_fits():
    assert plan_rates(spread(8), {2: 0.07, 3: 0.018}, lambda rate: 10 * rate, 100) is None
