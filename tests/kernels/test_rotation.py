"""Rotated weights through every way that a layer takes: decoding, products of few and many samples, convolutions,
gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vqcompress.kernels import ConvGeometry, choose_kernel, conv2d, decode, decode_case, linear
from vqcompress.kernels.learning import parameter_gradients
from vqcompress.matrix_view import matrix_shape


@pytest.fixture
def rotated(random_weight):
    """``rotated(shape)`` -> a weight whose spec has a rotation over blocks of 16 outputs."""

    def make(shape: tuple[int, ...]):
        weight = random_weight("trellis", shape, rate_bits=2, min_rate=1)
        return replace(weight, spec=replace(weight.spec, rotation=16))

    return make


@pytest.mark.parametrize("shape", [(48, 10), (32, 3, 3, 3)])
def test_decoding_equals_the_reference(rotated, shape):
    weight = rotated(shape)
    assert "rotated back" in choose_kernel(weight.spec, shape, decode_case(torch.device("cpu"), torch.float32)).purpose
    expected = weight.spec.decode_transposed(*matrix_shape(shape), weight.tensors).t().reshape(shape)
    assert torch.equal(decode(weight.spec, shape, weight.tensors, torch.float32), expected)
    plain = replace(weight.spec, rotation=0)
    assert not torch.allclose(decode(plain, shape, weight.tensors, torch.float32), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products(rotated, count, dtype):
    weight = rotated((48, 10))
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(count, 10, generator=generator).to(dtype), torch.randn(48, generator=generator)
    y = linear(x, weight.spec, weight.shape, weight.tensors, bias)
    expected = F.linear(x.float(), weight.decode(), bias)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=1e-5 if dtype == torch.float32 else 4e-3, atol=4e-3)


def test_convolutions(rotated):
    weight = rotated((32, 3, 3, 3))
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    y = conv2d(x, weight.spec, weight.shape, weight.tensors, None, ConvGeometry(padding=(1, 1)))
    torch.testing.assert_close(y, F.conv2d(x, weight.decode(), None, 1, 1))


def test_scales_learn_through_the_rotation(rotated):
    weight = rotated((48, 10))
    generator = torch.Generator().manual_seed(0)
    x, probe = torch.randn(5, 10, generator=generator), torch.randn(5, 48, generator=generator)
    scale = weight.tensors["scale"].float().requires_grad_()
    y = linear(x, weight.spec, weight.shape, {**weight.tensors, "scale": scale}, None)
    (y * probe).sum().backward()
    reference = weight.tensors["scale"].float().requires_grad_()
    dense = weight.spec.decode_transposed(48, 10, {**weight.tensors, "scale": reference})
    (x @ dense * probe).sum().backward()
    torch.testing.assert_close(scale.grad, reference.grad, rtol=1e-4, atol=1e-4)
    found = parameter_gradients(weight.spec, weight.shape, weight.tensors, x.t() @ probe)
    torch.testing.assert_close(found["scale"], reference.grad, rtol=1e-4, atol=1e-4)
