"""Outliers of a packed layer stay as they are while its other parameters learn."""

from __future__ import annotations

import torch
from torch import nn

from vqcompress.finetune.learnable import make_learnable
from vqcompress.layers import swap
from vqcompress.quantizers import quantize_weight


def test_scales_learn_around_outliers():
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(48, 32, generator=generator)
    weight[5, 7] = 20.0
    packed = quantize_weight(weight, bits=3.0)
    assert packed.spec.outliers > 0
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
    for name in ("outlier_values", "outlier_positions", "weight"):
        assert torch.equal(after[f"0.{name}"], before[f"0.{name}"])
