"""Water-filling against brute force."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from vqcompress.quantizers.column_rates import RateSteps, plan_rates

DISTORTION = {0: 1.0, 1: 0.28, 2: 0.07, 3: 0.018, 4: 0.0046, 5: 0.0012}


def spread(columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)).mul(2).exp().double()


def cost(sensitivity, rates) -> float:
    return sum(float(s) * DISTORTION[int(r)] for s, r in zip(sensitivity, rates, strict=True))


@pytest.mark.parametrize("budget", [0, 1, 7, 10, 15, 30])
def test_allocation_is_optimal(budget):
    sensitivity = spread(5)
    steps = RateSteps(sensitivity, [DISTORTION[r] for r in range(4)], 0, lambda rate: rate)
    rates = steps.allocate(0, 3, budget)
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


@pytest.mark.parametrize("outputs", [9, 13, 17, 21])
@pytest.mark.parametrize("budget", [5, 17, 40, 90])
def test_bytes_that_are_rounded_up_are_counted(outputs, budget):
    """Half bits of few outputs: a later step may cost fewer bytes than the one before it."""
    halves = {h: 2.0**-h * 1.13 if h else 1.0 for h in range(9)}
    plan = plan_rates(spread(8), halves, lambda h: (outputs * h // 2 + 7) // 8, budget, most_rate_bits=4)
    stored = (8 * plan.rate_bits + 7) // 8 if plan.rate_bits else 0
    assert sum((outputs * h // 2 + 7) // 8 for h in plan.rates.tolist()) + stored <= budget


def test_everything_gets_the_most_when_the_budget_allows():
    plan = plan_rates(spread(8), DISTORTION, lambda rate: rate, 1000)
    assert plan.rates.tolist() == [5] * 8


def test_many_columns_are_planned_in_little_time():
    """A plan over half bits costs less than encoding a few of the columns."""
    halves = {h: 2.0**-h * 1.13 if h else 1.0 for h in range(13)}
    sensitivity = spread(5120)
    start = time.process_time()
    plan = plan_rates(sensitivity, halves, lambda h: 40 * h, 5120 * 40 * 6, most_rate_bits=4)
    assert time.process_time() - start < 1.0
    assert plan.rate_bits in (3, 4)


def test_nothing_fits():
    assert plan_rates(spread(8), {2: 0.07, 3: 0.018}, lambda rate: 10 * rate, 100) is None
