"""Output moments against the full Jacobian of a small network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vqcompress.calibration.importance import layer_importance
from vqcompress.calibration.output_moments import record_output_moments

SIDES = {"pixels": 5, "tokens": 3, "silent": 4}
PLENTY = 10**9


class Denoiser(nn.Module):
    """A convolution, a linear layer over its pixels, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.tokens, self.silent = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(5, 3), nn.Linear(4, 4)

    def forward(self, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.behind(self.pixels(sample)),)

    def behind(self, hidden: Tensor) -> Tensor:
        return self.tokens(torch.tanh(hidden).flatten(2).transpose(1, 2)).square()


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser()


def recorded(denoiser: Denoiser, calls: list[dict[str, Tensor]], memory_budget: int = PLENTY) -> dict[str, Tensor]:
    return dict(record_output_moments(denoiser, SIDES, calls, seed=0, memory_budget=memory_budget))


def test_a_moment_is_the_jacobians(denoiser: Denoiser) -> None:
    sample = torch.randn(2, 2, 3, 4)
    hidden = denoiser.pixels(sample).detach()
    jacobian = torch.autograd.functional.jacobian(denoiser.behind, hidden)
    by_channel = jacobian.flatten(0, 2).movedim(2, -1).flatten(0, -2)  # [outputs x images x pixels, channels]
    expected = by_channel.t() @ by_channel / denoiser.behind(hidden).detach().square().sum()
    found = recorded(denoiser, [{"sample": sample}] * 600)["pixels"] / 600
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06 * float(expected.diagonal().max()))
    assert float((expected - torch.diag(expected.diagonal())).abs().max()) > 0.2 * float(expected.diagonal().max())


def test_the_trace_is_the_importance(denoiser: Denoiser) -> None:
    calls = [{"sample": torch.randn(2, 2, 3, 4)} for _ in range(3)]
    moments = recorded(denoiser, calls)
    for name, importance in layer_importance(denoiser, ["pixels", "tokens"], calls, seed=0).items():
        assert float(moments[name].trace()) / SIDES[name] / len(calls) == pytest.approx(importance, rel=1e-4)


def test_little_memory_takes_more_passes_to_the_same_moments(denoiser: Denoiser) -> None:
    calls, passes = [{"sample": torch.randn(2, 2, 3, 4)} for _ in range(3)], []
    denoiser.tokens.register_forward_hook(lambda *_: passes.append(1))
    at_once = recorded(denoiser, calls)
    assert len(passes) == len(calls)
    one_by_one = recorded(denoiser, calls, memory_budget=1)
    assert len(passes) == 4 * len(calls)
    assert all(torch.equal(at_once[name], one_by_one[name]) for name in SIDES)


def test_layers_that_nothing_reaches_get_zeros(denoiser: Denoiser) -> None:
    assert torch.equal(recorded(denoiser, [{"sample": torch.randn(1, 2, 3, 4)}])["silent"], torch.zeros(4, 4))
    assert all(p.requires_grad and p.grad is None for p in denoiser.parameters())
