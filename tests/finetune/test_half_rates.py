"""Layers with half-integer rates learn their scales, and their codes stay."""

from __future__ import annotations

import torch
from torch import nn

from vqcompress.finetune.learnable import make_learnable
from vqcompress.layers import swap
from vqcompress.quantizers import quantize_weight


def test_scales_learn_through_half_rates():
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(48, 32, generator=generator)
    packed = quantize_weight(weight, bits=2.5)
    assert packed.spec.half_rates
    assert packed.bits_per_weight <= 2.5
    model = nn.Sequential(nn.Linear(32, 48))
    swap(model, {"0": packed})
    codes = model.state_dict()["0.weight"].clone()
    learnable = make_learnable(model)
    x = torch.randn(256, 32, generator=generator)
    target = 1.3 * x @ weight.t()
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
    assert torch.equal(model.state_dict()["0.weight"], codes)
