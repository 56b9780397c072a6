"""Multiplying and convolving with packed weights, forwards and backwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from vqcompress.kernels import ConvGeometry, conv2d, decode, linear, precision
from vqcompress.kernels.precision import product_dtype

FORMATS = ["trellis", "additive", "scalar"]


def _all(weight):
    return {**weight.tensors, **weight.shared}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_linear_is_the_dense_product(name, dtype, random_weight):
    weight = random_weight(name, (24, 40))
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.randn(24, generator=torch.Generator().manual_seed(2))
    y = linear(x, weight.spec, weight.shape, _all(weight), bias)
    assert y.dtype == dtype
    taken_in = product_dtype(dtype, x.device)
    expected = F.linear(x.to(taken_in), weight.decode().to(taken_in), bias.to(taken_in))
    assert torch.equal(y, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("supported", [True, False])
def test_products_that_would_be_emulated_are_taken_in_float32(dtype, supported, random_weight, monkeypatch):
    monkeypatch.setattr(precision, "_has_products", lambda dtype: supported)
    weight, conv = random_weight("trellis", (24, 40)), random_weight("trellis", (8, 5, 3, 3))
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    image = torch.randn(2, 5, 9, 9, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    kind = dtype if supported else torch.float32
    with torch.autocast("cpu", dtype=dtype):
        y = linear(x, weight.spec, weight.shape, _all(weight), None)
        picture = conv2d(image, conv.spec, conv.shape, _all(conv), None)
    assert y.dtype == picture.dtype == dtype
    assert torch.equal(y, F.linear(x.to(kind), weight.decode().to(kind)).to(dtype))
    assert torch.equal(picture, F.conv2d(image.to(kind), conv.decode().to(kind)).to(dtype))
    y.sum().backward()
    picture.sum().backward()
    assert torch.equal(x.grad, (torch.ones(6, 24, dtype=kind) @ weight.decode().to(kind)).to(dtype))
    assert image.grad.dtype == dtype


@pytest.mark.parametrize("name", FORMATS)
def test_conv2d_is_the_dense_convolution(name, random_weight):
    weight = random_weight(name, (8, 5, 3, 3))
    x = torch.randn(2, 5, 9, 9, generator=torch.Generator().manual_seed(1))
    y = conv2d(x, weight.spec, weight.shape, _all(weight), None, ConvGeometry((2, 1), (1, 2)))
    assert torch.equal(y, F.conv2d(x, weight.decode(), None, (2, 1), (1, 2)))


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_the_dense_layer(name, random_weight):
    weight = random_weight(name, (24, 40))
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    bias = torch.zeros(24, requires_grad=True)
    linear(x, weight.spec, weight.shape, _all(weight), bias).square().sum().backward()
    x2, bias2 = x.detach().clone().requires_grad_(), torch.zeros(24, requires_grad=True)
    F.linear(x2, weight.decode(), bias2).square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(bias.grad, bias2.grad)


def test_convolution_gradients_are_those_of_the_dense_layer(random_weight):
    weight = random_weight("trellis", (8, 5, 3, 3))
    x = torch.randn(2, 5, 9, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    bias = torch.zeros(8, requires_grad=True)
    conv2d(x, weight.spec, weight.shape, _all(weight), bias, ConvGeometry((2, 2), (1, 1))).square().sum().backward()
    x2, bias2 = x.detach().clone().requires_grad_(), torch.zeros(8, requires_grad=True)
    F.conv2d(x2, weight.decode(), bias2, 2, 1).square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(bias.grad, bias2.grad)


def test_quantization_parameters_learn_through_the_reference(random_weight):
    weight = random_weight("additive", (24, 40))
    tensors = {name: t.float().requires_grad_() if t.is_floating_point() else t for name, t in _all(weight).items()}
    linear(torch.randn(3, 40), weight.spec, weight.shape, tensors, None).square().sum().backward()
    assert tensors["codebooks"].grad.abs().sum() > 0
    assert tensors["scale"].grad.abs().sum() > 0


def test_autocast_is_that_of_the_dense_layer(random_weight):
    weight = random_weight("trellis", (24, 40))
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    bias = torch.zeros(24)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight.spec, weight.shape, _all(weight), bias)
        expected = F.linear(x, weight.decode(), bias)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=2e-3)  # ours may be summed from unrounded weights
    y.float().square().sum().backward()
    assert x.grad.dtype == torch.float32


def test_inference_mode(random_weight):
    weight = random_weight("trellis", (24, 40))
    with torch.inference_mode():
        x = torch.randn(6, 40)
        y = linear(x, weight.spec, weight.shape, _all(weight), None)
        assert torch.equal(y, F.linear(x, weight.decode()))


def test_no_dense_weight_is_kept_for_the_backward_pass(random_weight):
    weight = random_weight("trellis", (24, 40))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        linear(torch.randn(3, 40, requires_grad=True), weight.spec, weight.shape, _all(weight), None)
    assert (24, 40) not in saved
    assert (40, 24) not in saved


def test_operators_satisfy_torchs_own_checks(random_weight):
    from vqcompress.kernels.packed_layout import PackedLayout, layout_to_text

    weight = random_weight("trellis", (24, 40))
    text = layout_to_text(PackedLayout(weight.spec, weight.shape, tuple(weight.tensors)))
    args = (torch.randn(3, 40, requires_grad=True), list(weight.tensors.values()), None, text)
    torch.library.opcheck(torch.ops.vqcompress.linear, args)


def test_decode_gives_the_weight(random_weight):
    weight = random_weight("scalar", (6, 4, 3, 3))
    assert torch.equal(decode(weight.spec, weight.shape, _all(weight), torch.float32), weight.decode())


def test_importing_the_kernels_does_not_load_numba():
    code = "import vqcompress.kernels, sys; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
