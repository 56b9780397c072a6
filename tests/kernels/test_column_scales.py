"""Weights with column scales through every way that a layer takes: decoding, products, convolutions, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vqcompress.formats.column_scales import column_scale_factors, pack_column_scales
from vqcompress.kernels import ConvGeometry, choose_kernel, conv2d, decode, decode_case, linear
from vqcompress.kernels.learning import parameter_gradients
from vqcompress.matrix_view import matrix_shape


@pytest.fixture(params=["trellis", "rotated", "additive"])
def scaled(request, random_weight):
    """``scaled(shape)`` -> a weight whose columns have scales of 4 down to .04, of each kind that can have them."""

    def make(shape: tuple[int, ...]):
        if request.param == "additive":
            weight = random_weight("additive", shape)
        else:
            weight = random_weight("trellis", shape, rate_bits=2, min_rate=1)
        columns = matrix_shape(shape)[1]
        codes = torch.randint(14, (columns,), generator=torch.Generator().manual_seed(3))
        spec = replace(weight.spec, column_scales=True, **({"rotation": 16} if request.param == "rotated" else {}))
        return replace(weight, spec=spec, tensors={**weight.tensors, "gains": pack_column_scales(codes)}), codes

    return make


@pytest.mark.parametrize("shape", [(48, 10), (32, 3, 3, 3)])
def test_decoding_scales_each_column(scaled, shape):
    weight, codes = scaled(shape)
    assert "column scales" in choose_kernel(weight.spec, shape, decode_case(torch.device("cpu"), torch.float32)).purpose
    plain = replace(weight.spec, column_scales=False)
    matrix = decode(plain, shape, weight.tensors, torch.float32).reshape(matrix_shape(shape))
    expected = (matrix * column_scale_factors(codes)).reshape(shape)
    assert torch.equal(decode(weight.spec, shape, weight.tensors, torch.float32), expected)
    assert torch.equal(weight.decode(), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products(scaled, count, dtype):
    weight, _ = scaled((48, 10))
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(count, 10, generator=generator).to(dtype), torch.randn(48, generator=generator)
    y = linear(x, weight.spec, weight.shape, weight.tensors, bias)
    expected = F.linear(x.float(), weight.decode(), bias)
    rough = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 4e-2}[dtype]
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=rough, atol=rough)


def test_small_scales_do_not_push_float16_inputs_out_of_their_range(scaled):
    weight, _ = scaled((48, 10))
    weight = replace(weight, tensors={**weight.tensors, "gains": pack_column_scales(torch.full((10,), 15))})
    x = torch.full((1, 10), 2e-5).half()
    y = linear(x, weight.spec, weight.shape, {**weight.tensors, "scale": weight.tensors["scale"] * 256}, None)
    expected = F.linear(x.float(), weight.decode() * 256)
    torch.testing.assert_close(y.float(), expected, rtol=2e-3, atol=2e-6)


def test_convolutions(scaled):
    weight, _ = scaled((32, 3, 3, 3))
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    y = conv2d(x, weight.spec, weight.shape, weight.tensors, None, ConvGeometry(padding=(1, 1)))
    torch.testing.assert_close(y, F.conv2d(x, weight.decode(), None, 1, 1), rtol=1e-4, atol=1e-4)


def test_scales_learn_through_column_scales(scaled):
    weight, _ = scaled((48, 10))
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
