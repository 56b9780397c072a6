"""Hutchinson's estimate against the full Jacobian of a small network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vqcompress.calibration.importance import layer_importance


class Denoiser(nn.Module):
    """Two layers with a nonlinearity; a third that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.silent = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(4, 4)

    def forward(self, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.second(torch.tanh(self.first(sample))),)


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser()


def exact(denoiser: Denoiser, sample: Tensor, width: int, layer: str) -> float:
    def rest(hidden: Tensor) -> Tensor:
        return denoiser.second(torch.tanh(hidden)) if layer == "first" else hidden

    hidden = denoiser.first(sample)
    hidden = hidden if layer == "first" else denoiser.second(torch.tanh(hidden))
    jacobian = torch.autograd.functional.jacobian(rest, hidden.detach())
    return float(jacobian.square().sum() / width / denoiser(sample)[0].detach().square().sum())


def test_estimates_the_squared_jacobian(denoiser: Denoiser) -> None:
    sample = torch.randn(6, 4)
    calls = [{"sample": sample}] * 400
    estimate = layer_importance(denoiser, ["first", "second"], calls, seed=0)
    assert estimate["first"] == pytest.approx(exact(denoiser, sample, 5, "first"), rel=0.1)
    assert estimate["second"] == pytest.approx(exact(denoiser, sample, 3, "second"), rel=0.1)


def test_silent_layers_get_zero_and_parameters_stay_as_they_were(denoiser: Denoiser) -> None:
    estimate = layer_importance(denoiser, ["first", "silent"], [{"sample": torch.randn(2, 4)}], seed=0)
    assert estimate["silent"] == 0
    assert estimate["first"] > 0
    assert all(p.requires_grad and p.grad is None for p in denoiser.parameters())


def test_the_same_seed_gives_the_same_numbers(denoiser: Denoiser) -> None:
    calls = [{"sample": torch.randn(3, 4)}]
    assert layer_importance(denoiser, ["first"], calls, seed=1) == layer_importance(denoiser, ["first"], calls, seed=1)
    assert layer_importance(denoiser, ["first"], calls, seed=1) != layer_importance(denoiser, ["first"], calls, seed=2)


class Modulated(nn.Module):
    """A layer that sees only timesteps, as in class-conditional transformers: no input of it asks for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.body = nn.Linear(1, 4), nn.Linear(4, 3)

    def forward(self, sample: Tensor, t: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.body(sample * self.modulation(t[:, None])),)


def test_layers_that_see_only_timesteps_count() -> None:
    torch.manual_seed(0)
    denoiser, sample, t = Modulated(), torch.randn(6, 4), torch.rand(6)
    calls = [{"sample": sample, "t": t}] * 400
    estimate = layer_importance(denoiser, ["modulation", "body"], calls, seed=0)
    jacobian = sample[:, None, :] * denoiser.body.weight  # of the output by the modulation, [rows, out, in]
    expected = (jacobian.square().sum() / 4 / denoiser(sample, t)[0].square().sum()).detach()
    assert estimate["modulation"] == pytest.approx(float(expected), rel=0.1)
