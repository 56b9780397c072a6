"""Coordinate descent never raises the objective, and says what it changed."""

from __future__ import annotations

import torch

from tests.quantizers.test_error_feedback import gaussian, moment_of, objective, to_grid
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.coordinate_descent import BLOCK, damped, descend


def test_it_never_raises_the_objective():
    weight, moment = 3 * gaussian(BLOCK + 20, 6), moment_of(BLOCK + 20)
    decoded = weight.round()
    before = objective(weight, decoded, moment)
    for _ in range(3):
        decoded, accepted = descend(weight, decoded, SecondMoment(moment), to_grid)
        after = objective(weight, decoded, moment)
        assert after <= before * (1 + 1e-5)
        before = after
    assert accepted.shape == (BLOCK + 20,)


def test_it_never_raises_the_objective_of_coupled_outputs():
    weight, moment = 3 * gaussian(40, 6), moment_of(40)
    mix = gaussian(6, 2, seed=9)
    outputs = damped(mix @ mix.t(), 0.1)

    def cost(decoded):
        error = weight - decoded
        return float(((moment @ error) * (error @ outputs)).sum())

    decoded = weight.round()
    before = cost(decoded)
    for _ in range(3):
        decoded, _ = descend(weight, decoded, SecondMoment(moment), to_grid, outputs)
        assert cost(decoded) <= before * (1 + 1e-5)
        before = cost(decoded)


def test_it_reports_what_it_changed():
    weight, moment = 3 * gaussian(30, 6), moment_of(30)
    old = weight.round()
    new, accepted = descend(weight, old, SecondMoment(moment), to_grid)
    assert torch.equal((new != old).any(1), accepted)
    assert accepted.any()
