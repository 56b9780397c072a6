"""VQLinear and VQConv2d: the packed form only, and everything a dense layer's surroundings do to it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqcompress.errors import UnsupportedError
from vqcompress.layers import VQConv2d, VQLinear, swap, vq_layers

FORMATS = ["trellis", "additive", "scalar"]


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.ModuleDict({"linear": nn.Linear(40, 24), "conv": nn.Conv2d(5, 8, 3, stride=2, padding=1)})
    return net.requires_grad_(False)


def _swapped(random_weight, name: str, **geometry) -> nn.Module:
    net = _net()
    linear = random_weight(name, (24, 40), **geometry)
    swap(net, {"linear": linear, "conv": random_weight(name, (8, 5, 3, 3), seed=1, **geometry)})
    return net


@pytest.mark.parametrize("name", FORMATS)
def test_forward_is_the_decoded_layer(name, random_weight):
    net = _swapped(random_weight, name)
    x, image = torch.randn(3, 40), torch.randn(2, 5, 8, 8)
    linear, conv = net["linear"], net["conv"]
    assert torch.equal(linear(x), F.linear(x, linear.dense_weight(), linear.bias))
    assert torch.equal(conv(image), F.conv2d(image, conv.dense_weight(), conv.bias, 2, 1))


def test_the_input_can_be_passed_by_the_name_that_dense_layers_have(random_weight):
    net = _swapped(random_weight, "scalar")
    x, image = torch.randn(3, 40), torch.randn(2, 5, 8, 8)
    assert torch.equal(net["linear"](input=x), net["linear"](x))
    assert torch.equal(net["conv"](input=image), net["conv"](image))


@pytest.mark.parametrize("name", FORMATS)
def test_state_is_packed_and_comes_back_as_data(name, random_weight):
    net = _swapped(random_weight, name)
    weight = random_weight(name, (24, 40))
    layer = net["linear"]
    assert isinstance(layer, VQLinear)
    assert isinstance(layer, nn.Linear)
    assert isinstance(net["conv"], VQConv2d)
    assert layer.weight.dtype == torch.int8
    assert net["conv"].weight.shape[-2:] == (1, 1)
    assert net["conv"].weight.ndim == 4
    assert all(parameter.ndim > 1 for parameter in net.parameters() if parameter.dtype == torch.int8)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(layer.quantized_weight().decode(), weight.decode())
    assert all(torch.equal(layer.quantized_weight().tensors[key], tensor) for key, tensor in weight.tensors.items())
    assert all(tensor.numel() != 24 * 40 for tensor in layer.state_dict().values())


def test_forward_changes_nothing(random_weight):
    net = _swapped(random_weight, "trellis")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net["linear"](torch.randn(3, 40))
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_module_leaves_codes_and_quantization_parameters_exact(dtype, random_weight):
    net = _swapped(random_weight, "additive", shared="book")
    expected = net["linear"].dense_weight()
    net.to(dtype)
    assert net["linear"].bias.dtype == dtype
    assert net["linear"].scale.dtype == torch.float16
    assert net.vq_shared.book.dtype == torch.float16
    assert torch.equal(net["linear"].dense_weight(), expected)
    assert net["linear"](torch.randn(3, 40, dtype=dtype)).dtype == dtype


def test_quantization_parameters_held_as_bits_decode_the_same(random_weight):
    net = _swapped(random_weight, "additive", shared="book")
    expected = net["linear"].dense_weight()
    net["linear"].scale = nn.Parameter(net["linear"].scale.view(torch.int16), requires_grad=False)
    net.vq_shared.book = nn.Parameter(net.vq_shared.book.view(torch.int16), requires_grad=False)
    assert torch.equal(net["linear"].dense_weight(), expected)


def test_deepcopy_takes_the_shared_codebook_along(random_weight):
    net = _swapped(random_weight, "additive", shared="book")
    copied = copy.deepcopy(net)
    x = torch.randn(3, 40)
    assert torch.equal(copied["linear"](x), net["linear"](x))
    net.vq_shared.book.data.zero_()
    assert copied["linear"].shared_codebooks is copied.vq_shared
    assert copied["linear"](x).abs().sum() > net["linear"](x).abs().sum()


def test_shared_codebook_is_stored_once(random_weight):
    net = _swapped(random_weight, "additive", shared="book")
    assert [name for name in net.state_dict() if "book" in name] == ["vq_shared.book"]
    assert set(vq_layers(net)) == {"linear", "conv"}


def test_a_codebook_in_use_outlives_an_offloader(random_weight):
    # diffusers' group offloading changes `.data` of a module's parameters as soon as its forward has returned.
    net = _swapped(random_weight, "additive", shared="book")
    given, expected = net.vq_shared("book"), net.vq_shared.book.detach().clone()
    net.vq_shared.book.data = torch.zeros_like(expected)
    assert torch.equal(given, expected)


def test_a_conv_made_by_its_type_is_dense():
    made = VQConv2d(5, 4, (3, 3), (1, 1), (1, 1), bias=False)
    assert type(made) is nn.Conv2d


def test_integer_input_is_refused(random_weight):
    net = _swapped(random_weight, "trellis")
    with pytest.raises(UnsupportedError, match="keep this layer dense"):
        net["linear"](torch.ones(3, 40).to(net["linear"].weight.dtype))


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_modes_are_kept(mode, random_weight):
    net = nn.ModuleDict({"conv": nn.Conv2d(5, 8, 3, padding=1, padding_mode=mode)})
    swap(net, {"conv": random_weight("trellis", (8, 5, 3, 3))})
    dense = nn.Conv2d(5, 8, 3, padding=1, padding_mode=mode)
    dense.load_state_dict({"weight": net["conv"].dense_weight(), "bias": net["conv"].bias})
    x = torch.randn(2, 5, 8, 8)
    assert torch.equal(net["conv"](x), dense(x))


def test_gradients_reach_quantization_parameters_when_they_learn(random_weight):
    net = _swapped(random_weight, "additive", shared="book")
    net.vq_shared.book.requires_grad_(True)
    net["linear"](torch.randn(3, 40)).square().sum().backward()
    assert net.vq_shared.book.grad.abs().sum() > 0


def test_compiles_into_one_graph(random_weight):
    net = _swapped(random_weight, "additive", shared="book")
    x = torch.randn(3, 40)
    compiled = torch.compile(net["linear"], fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), net["linear"](x))
