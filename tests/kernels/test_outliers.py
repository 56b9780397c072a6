"""Weights with outliers through every way that a layer takes: decoding, products, convolutions, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vqcompress.formats.column_scales import pack_column_scales
from vqcompress.formats.outliers import POSITIONS, VALUES
from vqcompress.kernels import ConvGeometry, choose_kernel, conv2d, decode, decode_case, linear
from vqcompress.kernels.kernel import triton_interpreter
from vqcompress.layers import swap
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

PLACES = [(0, 0), (47, 0), (5, 3), (6, 3), (0, 9), (47, 9)]  # output, column


@pytest.fixture(params=["trellis", "rotated and scaled", "additive"])
def kept_aside(request, random_weight):
    """``kept_aside(shape)`` -> a packed weight with six outliers, and the dense sum of codes and outliers."""

    def make(shape: tuple[int, ...]) -> tuple[QuantizedWeight, torch.Tensor]:
        outputs, columns = matrix_shape(shape)
        weight = random_weight("additive" if request.param == "additive" else "trellis", shape)
        if request.param == "rotated and scaled":
            scales = pack_column_scales(torch.randint(14, (columns,), generator=torch.Generator().manual_seed(3)))
            spec = replace(weight.spec, column_scales=True, rotation=16)
            weight = replace(weight, spec=spec, tensors={**weight.tensors, "gains": scales})
        values = torch.tensor([3.0, -60000.0, 1e-4, 7.0, -0.5, 900.0]).half()
        positions = torch.tensor([column * outputs + output for output, column in PLACES], dtype=torch.int32)
        dense = weight.decode().reshape(outputs, columns).clone()
        for (output, column), value in zip(PLACES, values, strict=True):
            dense[output, column] += value.float()
        tensors = {**weight.tensors, VALUES: values, POSITIONS: positions}
        return replace(weight, spec=replace(weight.spec, outliers=6), tensors=tensors), dense.reshape(shape)

    return make


@pytest.mark.parametrize("shape", [(48, 10), (48, 3, 3, 3)])
def test_decoding_adds_each_outlier(kept_aside, shape):
    weight, dense = kept_aside(shape)
    assert "outliers" in choose_kernel(weight.spec, shape, decode_case(torch.device("cpu"), torch.float32)).purpose
    assert torch.equal(decode(weight.spec, shape, weight.tensors, torch.float32), dense)
    assert torch.equal(weight.decode(), dense)


@pytest.mark.parametrize("interpreted", [False, True], ids=["cpu", "triton"])
@pytest.mark.parametrize("count", [0, 1, 2, 9, 40])
def test_products(kept_aside, count, interpreted):
    weight, dense = kept_aside((48, 10))
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(count, 10, generator=generator), torch.randn(48, generator=generator)

    def product():
        return linear(x, weight.spec, weight.shape, weight.tensors, bias)

    if interpreted:
        pytest.importorskip("triton")
        with triton_interpreter():
            y = product()
    else:
        y = product()
    torch.testing.assert_close(y, F.linear(x, dense, bias), rtol=1e-5, atol=1e-2)


def test_convolutions(kept_aside):
    weight, dense = kept_aside((48, 3, 3, 3))
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    y = conv2d(x, weight.spec, weight.shape, weight.tensors, None, ConvGeometry((1, 1), (1, 1), (1, 1)))
    torch.testing.assert_close(y, F.conv2d(x, dense, padding=1), rtol=1e-5, atol=1e-2)


def test_gradients_are_those_of_the_dense_weight(kept_aside):
    weight, dense = kept_aside((48, 10))
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tensors = {name: t.clone().requires_grad_(t.is_floating_point()) for name, t in weight.tensors.items()}
    linear(x, weight.spec, weight.shape, tensors, None).sin().sum().backward()
    twin, leaf = x.detach().clone().requires_grad_(), dense.clone().requires_grad_()
    F.linear(twin, leaf).sin().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-3, atol=1e-2)
    outputs, columns = zip(*PLACES, strict=True)
    expected = leaf.grad[list(outputs), list(columns)]
    torch.testing.assert_close(tensors[VALUES].grad.float(), expected, rtol=5e-3, atol=2e-2)


def test_a_packed_layer_keeps_positions_as_they_are_when_it_is_cast(kept_aside):
    weight, dense = kept_aside((48, 10))
    model = torch.nn.Sequential(torch.nn.Linear(10, 48, bias=False))
    swap(model, {"0": weight})
    model.to(torch.bfloat16)
    assert model[0].outlier_positions.dtype == torch.int32
    torch.testing.assert_close(model(torch.eye(10)), dense.t(), rtol=1e-2, atol=1e-2)
