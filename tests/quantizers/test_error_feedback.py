"""Error feedback against the textbook recursion, and the objective it promises to lower."""

from __future__ import annotations

import pytest
import torch

from vqcompress.errors import CalibrationError
from vqcompress.moments.rate_distortion import distortion_bound
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import (
    ALLOWED_RISE,
    BLOCK,
    ESTIMATE_DAMPING,
    MOST_DAMPING,
    prepare_feedback,
    usual_damping,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment_of(columns: int, samples: int = 400) -> torch.Tensor:
    x = gaussian(samples, columns, seed=7) @ gaussian(columns, columns, seed=8)
    return x.t() @ x / samples


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
    feedback = prepare_feedback(SecondMoment(moment), damping=0.0)
    expected = textbook_gptq(weight, moment, feedback.order)
    assert torch.equal(feedback.sweep(weight, to_grid).double(), expected)


def test_order_is_falling_diagonal():
    moment = torch.diag(torch.tensor([1.0, 9.0, 4.0]))
    assert prepare_feedback(SecondMoment(moment)).order.tolist() == [1, 2, 0]


def test_sensitivity_sums_to_the_objective():
    """The objective is the sum over columns of sensitivity times squared error after feedback."""
    columns = BLOCK + 30  # crosses a block
    weight, moment = 3 * gaussian(columns, 5), moment_of(columns)
    feedback = prepare_feedback(SecondMoment(moment), damping=0.0)
    cost = torch.zeros(())

    def encode(column, target):
        nonlocal cost
        cost = cost + feedback.sensitivity[column] * (target - target.round()).double().square().sum()
        return target.round()

    decoded = feedback.sweep(weight, encode)
    assert objective(weight, decoded, moment) == pytest.approx(float(cost), rel=1e-3)


def test_propagated_error_is_what_is_predicted():
    """Coded with errors of equal cost, targets have grown by the variance that `Feedback.propagated_error` tells."""
    moment, outputs, level = moment_of(12), 20_000, 1e-2
    feedback = prepare_feedback(SecondMoment(moment), 0.0)
    weight, noise = torch.zeros(12, outputs), gaussian(12, outputs, seed=3)
    targets = torch.zeros(12, outputs)
    errors = (level / feedback.sensitivity).sqrt()

    def code(column: int, target: torch.Tensor) -> torch.Tensor:
        targets[column] = target
        return target - errors[column] * noise[column]

    feedback.sweep(weight, code)
    found = targets.double().square().mean(1)
    expected = level / feedback.sensitivity * feedback.propagated_error()
    assert float(found[feedback.order[0]]) == 0.0
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-9)


def test_sensitivity_of_independent_inputs_is_their_power():
    power = torch.tensor([1.0, 9.0, 4.0])
    torch.testing.assert_close(
        prepare_feedback(SecondMoment(torch.diag(power)), damping=0.0).sensitivity, power.double()
    )


def test_feedback_pays():
    weight, moment = 3 * gaussian(40, 30), moment_of(40)
    swept = prepare_feedback(SecondMoment(moment)).sweep(weight, to_grid)
    assert objective(weight, swept, moment) < 0.6 * objective(weight, weight.round(), moment)


@pytest.mark.parametrize("rank", [0, 1, 20])
def test_rank_deficient_moments_factor(rank):
    x = gaussian(max(rank, 1), 50) * bool(rank)
    feedback = prepare_feedback(SecondMoment(x.t() @ x), damping=0.0)
    assert torch.isfinite(feedback.factor).all()
    assert (feedback.sensitivity > 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_broken_moments_are_refused(bad):
    moment = torch.eye(4)
    moment[2, 2] = bad
    with pytest.raises(CalibrationError, match="record again"):
        prepare_feedback(SecondMoment(moment))


def test_factor_of_a_large_moment():
    """Beyond the size that is inverted in one piece: UᵀU is the inverse, U upper."""
    moment = moment_of(700, samples=2000).double()
    feedback = prepare_feedback(SecondMoment(moment), damping=1e-2)
    factor, ordered = feedback.factor.double(), moment[feedback.order][:, feedback.order]
    damped = ordered + 1e-2 * moment.diagonal().mean() * torch.eye(700)
    torch.testing.assert_close(factor.t() @ factor @ damped, torch.eye(700).double(), atol=1e-4, rtol=0)
    assert torch.equal(factor, factor.triu())


def optimal_targets(weight, moment, order, distortion, encode) -> torch.Tensor:
    """By definition: before each column, the cost of what is left of the weight if all later columns take up ``1 - D``
    of their optimal targets; the column's target is where this cost is least."""
    costs, left = [], moment.double()
    for j in reversed(order.tolist()):
        costs.append(left)
        left = left - (1 - distortion[j]) * torch.outer(left[j], left[j]) / left[j, j]
    rest, targets = weight.double().clone(), torch.zeros_like(weight).double()
    for j, cost in zip(order.tolist(), reversed(costs), strict=True):
        targets[j] = cost[j] @ rest / cost[j, j]
        rest[j] -= encode(j, targets[j].float()).double()
    return targets


@pytest.mark.parametrize("samples", [0, 9])
def test_targets_are_the_best_given_later_columns_noise(samples):
    """Columns of little and of no rate among them; few samples and a ridge alike."""
    columns = BLOCK + 30
    distortion = torch.rand(columns, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    distortion[::7] = 1.0
    moment = SecondMoment(moment_of(columns))
    if samples:
        moment = SecondMoment(samples=gaussian(samples, columns), ridge=0.5)
    feedback = prepare_feedback(moment, 0.0, distortion=distortion)
    weight, targets = gaussian(columns, 4), torch.zeros(columns, 4).double()

    def coarse(column: int, target: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(target) if distortion[column] == 1 else (target * 0.8 + 0.05)

    def noting(column: int, target: torch.Tensor) -> torch.Tensor:
        targets[column] = target
        return coarse(column, target)

    feedback.sweep(weight, noting)
    expected = optimal_targets(weight, moment.dense(), feedback.order, distortion.clamp_max(0.9999), coarse)
    coded = distortion < 1
    torch.testing.assert_close(targets[coded], expected[coded], rtol=1e-3, atol=1e-3)


def test_feedback_that_knows_the_codes_noise_reaches_its_own_forecast():
    """Ideal codes for Gaussian targets: the objective is the trace of what dynamic programming leaves, and below that
    of feedback that takes codes for exact."""
    moment, outputs = moment_of(12, samples=14), 50_000
    distortion = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)
    noise = gaussian(12, outputs, seed=3)

    def ideal(column: int, target: torch.Tensor) -> torch.Tensor:
        lost = float(distortion[column])
        return (1 - lost) * target + (lost * (1 - lost) * target.square().mean()).sqrt() * noise[column]

    weight = gaussian(12, outputs)
    known, exact = (prepare_feedback(SecondMoment(moment), 0.0, distortion=d) for d in (distortion, None))
    left = moment.double()
    for j in reversed(known.order.tolist()):
        left = left - (1 - distortion[j]) * torch.outer(left[j], left[j]) / left[j, j]
    reached = objective(weight, known.sweep(weight, ideal), moment) / outputs
    assert reached == pytest.approx(float(left.trace()), rel=0.02)
    assert reached < 0.8 * objective(weight, exact.sweep(weight, ideal), moment) / outputs


def test_a_moment_that_nobody_counted_is_the_true_one():
    assert usual_damping(SecondMoment(moment_of(6)), 3.0) < 1e-6


def test_an_estimate_is_damped_by_what_costs_next_to_nothing():
    """Little where few directions have all the power, a share of the mean where all are alike."""
    found = []
    for steepness in (4, 2, 0):
        powers = torch.arange(1, 65).double() ** -steepness
        moment = SecondMoment(torch.diag(powers).float(), seen=10**7, used=10**7)
        damping = usual_damping(moment, 3.0)
        rise = _bound(powers + damping * powers.mean()) / _bound(powers)
        assert rise <= ALLOWED_RISE
        assert damping == pytest.approx(MOST_DAMPING, rel=0.1) or rise > 0.95 * ALLOWED_RISE
        found.append(damping)
    assert found[0] < 1e-3 < found[1] < found[2]


def test_an_estimate_from_few_samples_is_damped_where_directions_are_unknown():
    moment = SecondMoment(torch.diag(torch.tensor([1.0] * 8 + [0.0] * 56)), seen=8, used=8)
    assert usual_damping(moment, 3.0) == pytest.approx(ESTIMATE_DAMPING, rel=0.1)


def test_dead_inputs_can_be_damped():
    assert 0 < usual_damping(SecondMoment(torch.zeros(8, 8), seen=9, used=9), 3.0) < 1


def _bound(powers: torch.Tensor) -> float:
    return distortion_bound(powers, 3.0) * float(powers.sum())


def test_damping_pays_on_samples_that_nobody_saw():
    """Learned from one and a half samples a column, and measured with the true moment."""
    spectrum = 1.0 / torch.arange(1, 65)
    turn, _ = torch.linalg.qr(gaussian(64, 64, seed=4))
    inputs = gaussian(96, 64, seed=6) * spectrum @ turn
    true, weight = turn.t() * spectrum.square() @ turn, gaussian(64, 40)
    square = inputs.t() @ inputs / len(inputs)

    def error(moment: SecondMoment) -> float:
        feedback = prepare_feedback(moment, usual_damping(moment, 4.0))
        return objective(weight, feedback.sweep(weight, lambda column, target: (4 * target).round() / 4), true)

    assert error(SecondMoment(square, seen=96, used=96)) < 0.95 * error(SecondMoment(square))
