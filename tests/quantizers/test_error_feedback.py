"""Error feedback against the textbook recursion, and the objective it promises to lower."""

from __future__ import annotations

import pytest
import torch

from vqcompress.errors import CalibrationError
from vqcompress.quantizers.error_feedback import BLOCK, damped, prepare_feedback, refine, sweep


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment_of(columns: int, rows: int = 400) -> torch.Tensor:
    x = gaussian(rows, columns, seed=7) @ gaussian(columns, columns, seed=8)
    return x.t() @ x / rows


def objective(weight, decoded, moment) -> float:
    error = (weight - decoded).double()
    return float((error * (moment.double() @ error)).sum())


def to_grid(column: int, target: torch.Tensor) -> torch.Tensor:
    return target.round()


def textbook_gptq(weight, moment, order):
    """One column at a time with the inverse of what remains: GPTQ's equation 3, without any factorization."""
    target, decoded, left = weight.double().clone(), torch.zeros_like(weight).double(), order.tolist()
    while left:
        inverse = torch.linalg.inv(moment[left][:, left])
        column, *left = left
        decoded[column] = target[column].round()
        error = (target[column] - decoded[column]) / inverse[0, 0]
        for i, later in enumerate(left, 1):
            target[later] -= error * inverse[0, i]
    return decoded


def test_sweep_is_gptq():
    weight, moment = 3 * gaussian(12, 9), moment_of(12).double()
    feedback = prepare_feedback(moment, damping=0.0)
    expected = textbook_gptq(weight, moment, feedback.order)
    assert torch.equal(sweep(weight, feedback, to_grid).double(), expected)


def test_order_is_falling_diagonal():
    moment = torch.diag(torch.tensor([1.0, 9.0, 4.0]))
    assert prepare_feedback(moment).order.tolist() == [1, 2, 0]


def test_sensitivity_sums_to_the_objective():
    """The objective is the sum over columns of sensitivity times squared error after feedback."""
    columns = BLOCK + 30  # crosses a block
    weight, moment = 3 * gaussian(columns, 5), moment_of(columns)
    feedback = prepare_feedback(moment, damping=0.0)
    cost = torch.zeros(())

    def encode(column, target):
        nonlocal cost
        cost = cost + feedback.sensitivity[column] * (target - target.round()).double().square().sum()
        return target.round()

    decoded = sweep(weight, feedback, encode)
    assert objective(weight, decoded, moment) == pytest.approx(float(cost), rel=1e-3)


def test_columns_inherit_what_is_predicted():
    """Coded with errors of equal cost, targets have grown by the variance that `Feedback.inherited` tells."""
    moment, rows, level = moment_of(12), 20_000, 1e-2
    feedback = prepare_feedback(moment, 0.0)
    weight, noise = torch.zeros(12, rows), gaussian(12, rows, seed=3)
    targets = torch.zeros(12, rows)
    errors = (level / feedback.sensitivity).sqrt()

    def code(column: int, target: torch.Tensor) -> torch.Tensor:
        targets[column] = target
        return target - errors[column] * noise[column]

    sweep(weight, feedback, code)
    found = targets.double().square().mean(1)
    expected = level / feedback.sensitivity * feedback.inherited()
    assert float(found[feedback.order[0]]) == 0.0
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-9)


def test_sensitivity_of_independent_inputs_is_their_power():
    power = torch.tensor([1.0, 9.0, 4.0])
    torch.testing.assert_close(prepare_feedback(torch.diag(power), damping=0.0).sensitivity, power.double())


def test_feedback_pays():
    weight, moment = 3 * gaussian(40, 30), moment_of(40)
    swept = sweep(weight, prepare_feedback(moment), to_grid)
    assert objective(weight, swept, moment) < 0.6 * objective(weight, weight.round(), moment)


@pytest.mark.parametrize("rank", [0, 1, 20])
def test_rank_deficient_moments_factor(rank):
    x = gaussian(max(rank, 1), 50) * bool(rank)
    feedback = prepare_feedback(x.t() @ x, damping=0.0)
    assert torch.isfinite(feedback.factor).all()
    assert (feedback.sensitivity > 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_broken_moments_are_refused(bad):
    moment = torch.eye(4)
    moment[2, 2] = bad
    with pytest.raises(CalibrationError, match="record again"):
        prepare_feedback(moment)


def test_refine_never_raises_the_objective():
    weight, moment = 3 * gaussian(BLOCK + 20, 6), moment_of(BLOCK + 20)
    decoded = weight.round()
    before = objective(weight, decoded, moment)
    for _ in range(3):
        decoded, accepted = refine(weight, decoded, moment, to_grid)
        after = objective(weight, decoded, moment)
        assert after <= before * (1 + 1e-5)
        before = after
    assert accepted.shape == (BLOCK + 20,)


def test_refine_never_raises_the_objective_of_coupled_outputs():
    weight, moment = 3 * gaussian(40, 6), moment_of(40)
    mix = gaussian(6, 2, seed=9)
    outputs = damped(mix @ mix.t(), 0.1)

    def cost(decoded):
        error = weight - decoded
        return float(((moment @ error) * (error @ outputs)).sum())

    decoded = weight.round()
    before = cost(decoded)
    for _ in range(3):
        decoded, _ = refine(weight, decoded, moment, to_grid, outputs)
        assert cost(decoded) <= before * (1 + 1e-5)
        before = cost(decoded)


def test_refine_reports_what_it_changed():
    weight, moment = 3 * gaussian(30, 6), moment_of(30)
    old = weight.round()
    new, accepted = refine(weight, old, moment, to_grid)
    assert torch.equal((new != old).any(1), accepted)
    assert accepted.any()


def test_factor_of_a_large_moment():
    """Beyond the size that is inverted in one piece: UᵀU is the inverse, U upper."""
    moment = moment_of(700, rows=2000).double()
    feedback = prepare_feedback(moment, damping=1e-2)
    factor, ordered = feedback.factor.double(), moment[feedback.order][:, feedback.order]
    damped = ordered + 1e-2 * moment.diagonal().mean() * torch.eye(700)
    torch.testing.assert_close(factor.t() @ factor @ damped, torch.eye(700).double(), atol=1e-4, rtol=0)
    assert torch.equal(factor, factor.triu())
