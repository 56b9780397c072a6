"""Swapping layers in and describing them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcompress.errors import ArchitectureError, CheckpointError
from vqcompress.layers import (
    FORMAT_VERSION,
    check_description,
    describe,
    empty_layers,
    make_dense,
    swap,
    vq_layers,
)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 24), nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24)))


def test_unknown_layer_is_refused_before_anything_changes(random_weight):
    net = _net()
    weight = random_weight("trellis", (24, 24))
    with pytest.raises(ArchitectureError, match=r"no layer .1\.7."):
        swap(net, {"1.0": weight, "1.7": weight})
    assert not vq_layers(net)


def test_wrong_shape_and_wrong_kind_are_refused(random_weight):
    net, weight = _net(), random_weight("trellis", (24, 24))
    with pytest.raises(ArchitectureError, match="another size"):
        swap(net, {"1.0": weight, "0": weight})
    assert not vq_layers(net)
    with pytest.raises(ArchitectureError, match="LayerNorm"):
        swap(_net(), {"1.1": random_weight("trellis", (24, 24))})


def test_disagreeing_shared_codebooks_are_refused(random_weight):
    one, two = (random_weight("additive", shape, shared="book") for shape in ((24, 40), (24, 24)))
    two.shared["codebooks"].mul_(2)
    with pytest.raises(ArchitectureError, match="shared codebook"):
        swap(_net(), {"0": one, "1.0": two})


def test_description_rebuilds_empty_layers_of_the_same_state(random_weight):
    net = _net()
    swap(net, {"0": random_weight("additive", (24, 40), shared="book"), "1.0": random_weight("scalar", (24, 24))})
    with torch.device("meta"):
        other = _net()
    empty_layers(other, describe(net))
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in net.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in other.state_dict().items()} == shapes
    other.load_state_dict(net.state_dict(), assign=True)
    x = torch.randn(3, 40)
    assert torch.equal(other[0](x), net[0](x))
    assert describe(other) == describe(net)


def test_a_layer_in_two_places_is_replaced_in_both(random_weight):
    shared = nn.Linear(24, 24)
    net = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    swap(net, {"0": random_weight("trellis", (24, 24))})
    assert net[0] is net[1][0]
    assert list(vq_layers(net)) == ["0"]
    make_dense(net)
    assert net[0] is net[1][0]
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "update vqcompress"),
        ({"format_version": None}, "format_version"),
        ({"layers": None}, "layers"),
    ],
)
def test_unreadable_descriptions_are_refused(change, message, random_weight):
    net = _net()
    swap(net, {"0": random_weight("trellis", (24, 40))})
    with pytest.raises(CheckpointError, match=message):
        check_description({**describe(net), **change})


def test_a_missing_shared_codebook_is_refused(random_weight):
    net = _net()
    swap(net, {"0": random_weight("additive", (24, 40), shared="book")})
    with pytest.raises(CheckpointError, match="shared codebook"):
        empty_layers(_net(), {**describe(net), "shared": {}})
