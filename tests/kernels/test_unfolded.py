"""Convolutions of a few positions: one product of unfolded inputs, with the values of a convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from random_weights import Extras, additive, scalar, trellis
from vqcompress.kernels import conv2d, decode
from vqcompress.kernels.packed_layout import ConvGeometry
from vqcompress.kernels.unfolded import LEAST_WEIGHTS, MOST_POSITIONS, convolution, is_unfolded
from vqcompress.layers import VQConv2d, set_dense_budget

EXTRAS = Extras(column_scales=True, outliers=5, rotation=16)
GEOMETRIES = [
    ConvGeometry((1, 1), (1, 1)),
    ConvGeometry((2, 1), (1, 0)),
    ConvGeometry((1, 1), (2, 2), (2, 1)),
    ConvGeometry(),
]


def layer():
    torch.manual_seed(0)  # of the bias
    spec, _, tensors = trellis((64, 64, 3, 3), 12, (6, 4), EXTRAS)
    return VQConv2d(nn.Conv2d(64, 64, 3, padding=1), spec, tensors)


def map_of(side, batch=1, seed=0):
    return torch.randn(batch, 64, side, side, generator=torch.Generator().manual_seed(seed))


def test_which_inputs_are_unfolded():
    large = (LEAST_WEIGHTS // 9, 1, 3, 3)
    assert is_unfolded(torch.zeros(MOST_POSITIONS // 4, 1, 2, 2), (*large[:1], 2, 3, 3))
    assert not is_unfolded(torch.zeros(MOST_POSITIONS // 4 + 1, 1, 2, 2), (*large[:1], 2, 3, 3))
    assert not is_unfolded(torch.zeros(1, 1, 2, 2), large)
    assert not is_unfolded(torch.zeros(1, 1, 2, 2, device="meta"), (*large[:1], 2, 3, 3))
    assert not is_unfolded(torch.zeros(0, 1, 2, 2), (*large[:1], 2, 3, 3))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(3, 3), (1, 3)])
def test_a_product_of_patches_is_the_convolution(geometry, size):
    """At padding 0 and 2 × 2 an output has fewer positions than the input, at padding 2 more."""
    weight, bias = torch.randn(20, 6, *size), torch.randn(20)
    for batch, high, wide in [(2, 3, 5), (1, 4, 4), (3, 3, 5)]:
        x = torch.randn(batch, 6, high, wide)
        for given in (bias, None):
            expected = F.conv2d(x, weight, given, *geometry)
            found = convolution(x, weight.flatten(1), given, size, geometry)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=1e-5)
            assert torch.equal(convolution(x, weight, given, size, geometry), expected)


WEIGHTS = {
    "trellis": lambda: trellis((64, 64, 3, 3), 12, (6, 4, 0), EXTRAS),
    "additive": lambda: additive((64, 64, 3, 3), 8, 8, 3, Extras(column_scales=True, outliers=2)),
    "scalar": lambda: scalar((64, 64, 3, 3), 4, 8),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_every_format_gives_what_its_dense_filter_gives(name, dtype, rounding):
    spec, _, tensors = WEIGHTS[name]()
    packed = VQConv2d(nn.Conv2d(64, 64, 3, padding=1), spec, tensors).to(dtype)
    x = map_of(2, 4).to(dtype)
    with torch.no_grad():
        first, second = packed(x), packed(x)
        dense = packed.dense_weight(torch.float32).double()
        expected = F.conv2d(x.double(), dense, packed.bias.double(), padding=1)
    assert first.dtype == dtype
    assert torch.equal(first, second)
    assert (first.double() - expected).norm() <= rounding * expected.norm()


def test_small_and_large_maps_may_follow_each_other():
    packed = layer()
    with torch.no_grad():
        expected = {side: layer()(map_of(side)) for side in (2, 8, 3)}
        for side in (2, 8, 2, 2, 8, 8, 3):
            assert torch.equal(packed(map_of(side)), expected[side])


@pytest.mark.parametrize("side", [2, 4, 5])
def test_a_kept_weight_gives_the_same_bits(side):
    packed = layer()
    x = map_of(side)
    with torch.no_grad():
        before = packed(x)
        set_dense_budget(packed, "all")
        assert torch.equal(packed(x), before)
        assert packed.__dict__["weight_source"].keeps
        assert torch.equal(packed(x), before)


def test_layout_of_the_output_is_that_of_a_convolution():
    weight = torch.randn(64, 64, 3, 3)
    for x in (map_of(3), map_of(3).to(memory_format=torch.channels_last)):
        expected = F.conv2d(x, weight, padding=1)
        found = convolution(x, weight.flatten(1), None, (3, 3), ConvGeometry(padding=(1, 1)))
        assert found.stride() == expected.stride()


def test_gradients_and_compilation_see_one_convolution():
    packed = layer()
    x = map_of(2, 2).requires_grad_()
    (grad,) = torch.autograd.grad(packed(x).square().sum(), x)
    dense = packed.dense_weight()
    again = x.detach().requires_grad_()
    y = F.conv2d(again, dense, packed.bias, padding=1)
    (expected,) = torch.autograd.grad(y.square().sum(), again)
    assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), y, atol=1e-4 * float(y.abs().max()))


def test_a_call_without_a_layer():
    spec, shape, tensors = WEIGHTS["trellis"]()
    x = map_of(2)
    found = conv2d(x, spec, shape, tensors, None, ConvGeometry(padding=(1, 1)))
    expected = F.conv2d(x, decode(spec, shape, tensors, torch.float32), padding=1)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
