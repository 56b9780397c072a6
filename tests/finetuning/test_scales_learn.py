"""A packed layer's scales learn through what lies about them, half-integer rates and outliers, which stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vqcompress.finetuning.learnable import make_learnable
from vqcompress.layers import swap
from vqcompress.quantizers import quantize_weight


def with_an_outlier(weight: Tensor) -> Tensor:
    weight[5, 7] = 20.0
    return weight


@pytest.mark.parametrize(
    ("plant", "bits", "field"), [(with_an_outlier, 3.0, "outliers"), (lambda weight: weight, 2.5, "half_rates")]
)
def test_scales_learn_and_codes_stay(plant, bits, field):
    generator = torch.Generator().manual_seed(0)
    weight = plant(0.1 * torch.randn(48, 32, generator=generator))
    packed = quantize_weight(weight, bits=bits)
    assert getattr(packed.spec, field)
    assert packed.bits_per_weight <= bits
    model = nn.Sequential(nn.Linear(32, 48))
    swap(model, {"0": packed})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learnable = make_learnable(model)
    assert set(learnable.parameters) == {"0.scale", "0.bias"}
    x = torch.randn(256, 32, generator=generator)
    target = 1.1 * x @ weight.t()
    optimizer = torch.optim.Adam(learnable.parameters.values(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    learnable.finalize()
    assert losses[-1] < 0.9 * losses[0]
    after = model.state_dict()
    assert not torch.equal(after["0.scale"], before["0.scale"])
    for name in set(before) - {"0.scale", "0.bias"}:
        assert torch.equal(after[name], before[name])
