"""Row scales and tables to learn in: nothing that is computed changes at first, and all of it is stored."""

from __future__ import annotations

import pytest
import torch

from vqcompress.finetune.widening import chosen_tables, give_row_scales, give_tables
from vqcompress.layers import SHARED_NAME, VQConv2d, VQLinear, swap, vq_layers


@pytest.fixture
def packed(random_weight):
    """A model with two trellis layers of one scale each, and a convolution of additive codes from a shared codebook."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 64), torch.nn.Conv2d(16, 24, 3))
    geometry = {"row_scales": False, "state_bits": 8, "min_rate": 1, "rate_bits": 1}
    weights = {str(i): random_weight("trellis", tuple(model[i].weight.shape), seed=i, **geometry) for i in range(2)}
    weights["2"] = random_weight("additive", (24, 16, 3, 3), shared="book", row_scales=False)
    swap(model, weights)
    return model


def decoded(model):
    return {name: layer.dense_weight() for name, layer in vq_layers(model).items()}


def test_row_scales_change_no_weight(packed):
    before = decoded(packed)
    give_row_scales(packed)
    assert all(layer.scale.shape == (layer.dense_shape[0],) for layer in vq_layers(packed).values())
    assert all(torch.equal(before[name], weight) for name, weight in decoded(packed).items())
    assert isinstance(packed[0], VQLinear)
    assert isinstance(packed[2], VQConv2d)


def test_tables_start_as_the_formula_and_are_shared(packed):
    before = decoded(packed)
    assert chosen_tables(packed, 0.0) == {}
    assert chosen_tables(packed, 1.0) == {(8, 0.0): (1, 2)}
    give_tables(packed, 1.0)
    assert all(torch.equal(before[name], weight) for name, weight in decoded(packed).items())
    tables = getattr(packed, SHARED_NAME)
    assert {name for name, _ in tables.named_parameters()} == {"book", "trellis0"}
    with torch.no_grad():
        tables.trellis0.mul_(2)
    after = decoded(packed)
    assert torch.equal(after["0"], 2 * before["0"])
    assert torch.equal(after["1"], 2 * before["1"])
    assert torch.equal(after["2"], before["2"])


def test_a_rare_rate_gets_no_table(packed):
    weights = dict.fromkeys((1, 2), 0)
    for name in ("0", "1"):
        layer = packed[int(name)]
        rates = layer.spec.rates(layer.dense_shape[1], layer.tensors())
        for rate in weights:
            weights[rate] += layer.dense_shape[0] * int((rates == rate).sum()) * rate
    share = (16 * 256) / weights[2] * 1.01
    assert chosen_tables(packed, share) == {(8, 0.0): (2,)}
