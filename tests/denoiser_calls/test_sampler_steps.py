"""Samplers read as linear maps, against what diffusers' schedulers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import Tensor

from tests.denoiser_calls.toy_sampler import ToyArchitecture, ToyDenoiser
from vqcompress.calibration.trajectory_importance import backward_along, trajectory_costs
from vqcompress.denoiser_calls.sampler_steps import read_steps, record_trajectory
from vqcompress.denoiser_calls.sampling import SamplingRun

SCHEDULERS: dict[str, Any] = {
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "euler": lambda: EulerDiscreteScheduler(prediction_type="v_prediction"),
    "dpm++ 2m": lambda: DPMSolverMultistepScheduler(),
    "heun": lambda: HeunDiscreteScheduler(),
}


def run_of(denoiser: ToyDenoiser, architecture: ToyArchitecture, prompts: tuple[str, ...]) -> SamplingRun:
    return SamplingRun(denoiser, architecture, prompts, seed=3)  # type: ignore[arg-type]


def gradient_of_autograd(denoiser: ToyDenoiser, architecture: ToyArchitecture, direction: Tensor) -> dict[str, Tensor]:
    """Through the scheduler's own code, which the code under test never differentiates."""
    final = architecture.run(denoiser, ["1"], [4])
    weights = {"shared": denoiser.shared.weight, "text": denoiser.text.weight}
    found = torch.autograd.grad((final * direction).sum(), list(weights.values()))
    return {name: gradient.flatten(1) for name, gradient in zip(weights, found, strict=True)}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_gradients_through_a_sampler_are_those_of_autograd(name: str) -> None:
    denoiser, architecture = ToyDenoiser(), ToyArchitecture(SCHEDULERS[name]())
    trajectory = record_trajectory(run_of(denoiser, architecture, ("0", "1")), 1)
    assert trajectory is not None
    assert trajectory.sample == "sample"
    direction = torch.randn(trajectory.final.shape, generator=torch.Generator().manual_seed(0))
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def seen(layer: Any, arguments: tuple[Any, ...]) -> Any:
            x = arguments[0].detach()
            x = x.movedim(1, -1).flatten(0, 2) if x.ndim == 4 else x
            return lambda gradients: sums.update({name: sums.get(name, 0) + gradients.t() @ x})

        return seen

    backward_along(denoiser, trajectory, direction, {name: watch(name) for name in ("shared", "text")})
    for layer, expected in gradient_of_autograd(denoiser, architecture, direction).items():
        torch.testing.assert_close(sums[layer], expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_noise_that_a_sampler_adds_leaves_its_coefficients() -> None:
    denoiser = ToyDenoiser()
    samples, outputs = [torch.randn(1, 4, 32, 32)], []
    for _ in range(3):
        outputs.append(denoiser(torch.cat([samples[-1]] * 2), torch.zeros(()), torch.randn(2, 6))[0].detach())
        mean = 0.8 * samples[-1] + 0.6 * outputs[-1][1:] - 0.4 * outputs[-1][:1]
        samples.append(mean + 0.3 * torch.randn_like(mean))
    steps = read_steps(samples, outputs)
    assert steps is not None
    for step in steps:
        assert step.keep[0] == pytest.approx(0.8, abs=0.1)


def test_a_sampler_that_is_no_linear_map_is_not_read() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(4)]
    outputs = [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3)]
    assert read_steps(samples, outputs) is None


def test_a_layer_s_cost_is_the_squared_distance_that_its_errors_cause() -> None:
    """Against finite differences: small errors put into the weight, the image drawn again."""
    denoiser, architecture = ToyDenoiser(), ToyArchitecture(FlowMatchEulerDiscreteScheduler())
    run = run_of(denoiser, architecture, ("0", "1"))
    generator = torch.Generator().manual_seed(1)
    shapes = {"shared": (64, 4, 1, 1), "text": (64, 6)}
    errors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    trajectory = record_trajectory(run, 1)
    assert trajectory is not None
    estimates = [trajectory_costs(denoiser, trajectory, errors, seed) for seed in range(60)]
    for name, layer in (("shared", denoiser.shared), ("text", denoiser.text)):
        kept, distances = layer.weight.data, []
        for draw in range(64):
            rows = torch.stack([errors[name][(draw + 7 * output) % 64] for output in range(4)])
            layer.weight.data = kept + 1e-3 * rows
            distances.append(
                float((run_of(denoiser, architecture, ("0", "1")).batch(1) - trajectory.final).square().sum())
            )
        layer.weight.data = kept
        measured = 1e6 * sum(distances) / len(distances)
        assert sum(each[name] for each in estimates) / len(estimates) == pytest.approx(measured, rel=0.25)
