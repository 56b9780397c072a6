"""Packed mixtures of experts: gradients reach the experts that tokens were routed to, through the router's weights."""

from __future__ import annotations

import pytest
import torch

from vqcompress.finetuning.learnable import make_learnable
from vqcompress.layers import swap
from vqcompress.models.mixture import Mixture


@pytest.fixture
def mixture(random_weight):
    """Eight packed experts of which two serve a row; the router stays dense."""
    torch.manual_seed(0)
    mixture = Mixture(16, 32, 32, experts=8, chosen=2)
    layers = {name: module for name, module in mixture.named_modules() if isinstance(module, torch.nn.Linear)}
    formats = ("trellis", "additive", "scalar")
    swap(
        mixture,
        {
            name: random_weight(formats[i % 3], tuple(m.weight.shape), seed=i)
            for i, (name, m) in enumerate(layers.items())
        },
    )
    return mixture.eval()


def test_routed_experts_learn_and_others_do_not(mixture):
    learnable = make_learnable(mixture)
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    routed = set(mixture.gate(x[0]).expert.flatten().tolist())
    assert 2 <= len(routed) < 8
    mixture(x).square().sum().backward()
    for name, parameter in learnable.parameters.items():
        reached = not name.startswith("experts.") or int(name.split(".")[1]) in routed
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient == reached, name


def test_an_expert_s_gradient_is_that_of_finite_differences(mixture):
    learnable = make_learnable(mixture)
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(2))

    def loss() -> torch.Tensor:
        return mixture(x).double().square().sum()

    loss().backward()
    expert = int(mixture.gate(x.flatten(0, 1)).expert[0, 0])
    name = next(n for n in learnable.parameters if n.startswith(f"experts.{expert}.") and n.endswith("scale"))
    parameter = learnable.parameters[name]
    direction = parameter.detach() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    step = 2.0**-8
    with torch.no_grad():
        parameter += step * direction
        above = loss()
        parameter -= 2 * step * direction
        below = loss()
    expected = float((above - below) / (2 * step))
    assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-2, abs=1e-3 * float(above))
