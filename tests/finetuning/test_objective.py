"""Losses by sample, and weights of timesteps."""

from __future__ import annotations

import pytest
import torch

from vqcompress.errors import RecipeError
from vqcompress.finetuning.objective import (
    measured_weights,
    min_snr_weights,
    noise_levels,
    random_projections,
    sample_losses,
    trajectory_weights,
)

SHAPE = (6, 4, 3, 3)  # two branches of three samples


def outputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_without_guidance_a_sample_s_loss_is_its_mean_squared_error():
    output, target = outputs()
    losses = sample_losses(output, target, branches=2)
    for sample in range(3):
        branches = [sample, sample + 3]
        assert losses[sample] == pytest.approx(float((output[branches] - target[branches]).square().mean()), rel=1e-5)


def test_the_guided_share_weighs_the_difference_of_the_branches_as_guidance_does():
    output, target = outputs()
    error = output - target
    mean, difference = (error[:3] + error[3:]) / 2, error[3:] - error[:3]
    expected = mean.square().mean((1, 2, 3)) + 2.5**2 * difference.square().mean((1, 2, 3))
    torch.testing.assert_close(sample_losses(output, target, 2, guidance=3.0, guided=1.0), expected)
    none = sample_losses(output, target, 2, guidance=3.0, guided=1e-9)
    torch.testing.assert_close(none, sample_losses(output, target, 2))


@pytest.mark.parametrize(("branches", "guided"), [(1, 1.0), (2, 0.0), (2, 0.3), (2, 1.0)])
def test_squares_of_random_projections_are_losses_on_average(branches, guided):
    error, generator = outputs()[0][: 3 * branches], torch.Generator().manual_seed(1)
    squares = [random_projections(error, branches, 3.0, guided, generator).square() for _ in range(4000)]
    losses = sample_losses(error, torch.zeros_like(error), branches, 3.0, guided)
    torch.testing.assert_close(torch.stack(squares).mean(0), losses, rtol=0.1, atol=0)


def test_a_model_without_guidance_has_one_branch():
    output, target = outputs()
    losses = sample_losses(output, target, branches=1, guidance=5.0, guided=1.0)
    torch.testing.assert_close(losses, (output - target).square().mean((1, 2, 3)))


def test_min_snr_weights_are_the_papers():
    snr = torch.tensor([0.1, 1.0, 5.0, 50.0], dtype=torch.float64)
    epsilon = min_snr_weights(snr, "epsilon")
    assert (epsilon / epsilon[0]).tolist() == pytest.approx([1, 1, 1, 0.1])
    velocity = min_snr_weights(snr, "v_prediction")
    assert (velocity[1] / velocity[3]).item() == pytest.approx((1 / 2) / (5 / 51))
    flow = min_snr_weights(snr, "flow")
    assert (flow[1] / flow[0]).item() == pytest.approx(1 * 0.25 / (0.1 / (1 + 0.1**0.5) ** 2))
    for weights in (epsilon, velocity, flow):
        assert float(weights.mean()) == pytest.approx(1)


def euler(levels: list[float], disturbed: int, target: str, error: float) -> float:
    """How far one step from ``levels[disturbed]`` ends from where it should, by Euler's rule on data 0 seen as noise
    1."""
    sigma, following = levels[disturbed], (*levels, 0.0)[disturbed + 1]
    size = (1 + sigma**2) ** 0.5

    def step(shift: float) -> float:
        if target == "v_prediction":
            output = 1 / size + shift
            denoised = sigma / size**2 - sigma / size * output
        elif target == "epsilon":
            denoised = sigma - sigma * (1 + shift)
        else:  # flow: x = (1 - t) data + t noise, of which the output is noise - data
            denoised = -sigma / (1 + sigma) * shift
        return sigma + (following - sigma) * (sigma - denoised) / sigma

    return step(error) - step(0.0)


@pytest.mark.parametrize("target", ["v_prediction", "epsilon", "flow"])
def test_trajectory_weights_are_what_one_step_of_the_sampler_makes_of_an_error(target):
    levels = [14.0, 5.0, 1.5, 0.3]
    snr = torch.tensor([levels[i] ** -2 for i in (0, 2, 1, 3, 2)], dtype=torch.float64)  # samples come in any order
    moved = torch.tensor([euler(levels, i, target, 1e-3) ** 2 for i in (0, 2, 1, 3, 2)])
    bounded = (moved / moved.mean()).clamp(0.1, 10)
    torch.testing.assert_close(trajectory_weights(snr, target), bounded / bounded.mean(), rtol=1e-4, atol=1e-6)


def test_measured_weights_follow_the_error_of_each_range_of_timesteps():
    times = torch.tensor([900.0, 100.0, 910.0, 110.0])
    weights = measured_weights(times, torch.tensor([1.0, 3.0, 1.0, 5.0]), buckets=2)
    assert weights.tolist() == pytest.approx([0.4, 1.6, 0.4, 1.6])


def test_noise_levels_of_schedulers():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    diffusion = DDIMScheduler(prediction_type="v_prediction")
    snr, target = noise_levels(diffusion, torch.tensor([0.0, 999.0]))
    assert target == "v_prediction"
    assert snr[0] > 100 > 1 > snr[1]
    snr, target = noise_levels(FlowMatchEulerDiscreteScheduler(), torch.tensor([500.0]))
    assert (target, snr.item()) == ("flow", pytest.approx(1.0))
    with pytest.raises(RecipeError, match="uniform"):
        noise_levels(object(), torch.tensor([1.0]))
