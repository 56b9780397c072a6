"""Kernels on GPUs are tried before they are believed: what differs from the CPU's is never given to a layer."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from random_weights import Extras, additive, scalar, trellis
from tests.layers.late_gpu import LateGpu
from vqcompress.kernels import KERNELS, Case, reference
from vqcompress.kernels.cuda.operations import decode_with, plan_of, prepare_with
from vqcompress.kernels.first_use import Verdicts, checked, host_weight, is_host_weight
from vqcompress.layers import VQLinear

EVERYTHING = Extras(column_scales=True, outliers=5, rotation=32)
WEIGHTS = [trellis((64, 40), 12, (6, 4), EVERYTHING), additive((64, 9), 8, 8, 2), scalar((64, 9), 3, 4)]
CASE = Case(torch.device("cpu"), torch.float32)


def kernel(wrong: float):
    """One whose weights and products are ``wrong`` in one place."""

    def decode(*weight):
        out = reference.decode_transposed(*weight).clone()
        out[1, 2] += wrong
        return out

    def multiply(x, spec, shape, tensors, bias):
        return F.linear(x.float(), decode(spec, shape, tensors).t(), bias).to(x.dtype)

    return replace(KERNELS[-1], name="new", decode_transposed=decode, multiply=multiply)


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight[0].format)
def test_the_cpus_weight_is_the_references(weight) -> None:
    spec, shape, tensors = weight
    for dtype in (torch.float32, torch.bfloat16):
        expected = reference.decode_transposed(*weight, dtype).t()
        assert torch.equal(host_weight(spec, shape, tensors, dtype), expected)
        assert is_host_weight(expected, spec, shape, tensors, dtype)
        assert not is_host_weight(expected + 0.1, spec, shape, tensors, dtype)


def test_a_right_kernel_is_compared_once() -> None:
    weight, tried = WEIGHTS[0], checked(kernel(0.0), CASE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(tried.decode_transposed(*weight), reference.decode_transposed(*weight))
            x = torch.randn(3, 40).half()
            assert torch.equal(tried.multiply(x, *weight, None), kernel(0.0).multiply(x, *weight, None))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight[0].format)
def test_a_wrong_kernel_is_the_reference_and_says_so(weight) -> None:
    tried, x, bias = checked(kernel(1.0), CASE), torch.randn(3, weight[1][1]), torch.randn(64)
    with pytest.warns(UserWarning, match="decoded by new on cpu in torch.float32 differs"):
        assert torch.equal(tried.decode_transposed(*weight), reference.decode_transposed(*weight))
    with pytest.warns(UserWarning, match="a product with .* differs"):
        tried.multiply(x, *weight, bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = F.linear(x, reference.decode_transposed(*weight).t(), bias)
        torch.testing.assert_close(tried.multiply(x, *weight, bias), expected)
        assert torch.equal(tried.decode_transposed(*weight), reference.decode_transposed(*weight))


def test_products_beyond_their_dtype_are_no_fault() -> None:
    spec, shape, tensors = scalar((64, 9), 3, 4)
    tried = checked(kernel(0.0), CASE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried.multiply(torch.full((2, 9), 6e4).half(), spec, shape, tensors, None)
        tried.multiply(torch.zeros(0, 9), spec, shape, tensors, None)


def test_a_cuda_kernel_that_decodes_wrong_weights_serves_no_layer() -> None:
    spec, shape, tensors = trellis((64, 40), 12, (6, 4))
    gpu = LateGpu(layer := VQLinear(nn.Linear(40, 64), spec, tensors))
    gpu.verdicts, gpu.wrong_from = Verdicts(), 1
    weight = spec, shape, layer.tensors()
    with pytest.warns(UserWarning, match=r"trellis_0_2_4_6_8_10_12_.* differs"):
        found = decode_with(gpu, *weight, torch.float32)
    assert torch.equal(found, reference.decode_transposed(*weight))
    assert prepare_with(gpu, *weight, torch.float32) is None


def test_a_cuda_kernel_is_tried_at_its_first_weight_and_no_other() -> None:
    net = nn.Sequential(*(VQLinear(nn.Linear(40, 64), *trellis((64, 40), 12, (6, 4))[::2]) for _ in range(2)))
    gpu = LateGpu(net)
    gpu.verdicts = Verdicts()
    for layer, launches in zip(net, (2, 1), strict=True):  # the first weight is decoded for the trial too
        weight = layer.spec, layer.dense_shape, layer.tensors()
        assert torch.equal(decode_with(gpu, *weight, torch.float32), reference.decode_transposed(*weight))
        assert plan_of(gpu, *weight, torch.float32).trusted
        assert len(gpu.happened()) == launches


def test_each_rate_of_a_cuda_kernel_is_tried() -> None:
    net = nn.Sequential(
        *(VQLinear(nn.Linear(40, 64), *trellis((64, 40), 12, halves)[::2]) for halves in ((6, 4), (6, 8)))
    )
    gpu, other = LateGpu(net), net[1]
    gpu.verdicts = Verdicts()
    decode_with(gpu, net[0].spec, net[0].dense_shape, net[0].tensors(), torch.float32)
    gpu.wrong_from = 1
    with pytest.warns(UserWarning, match="differs"):
        decode_with(gpu, other.spec, other.dense_shape, other.tensors(), torch.float32)
    assert plan_of(gpu, net[0].spec, net[0].dense_shape, net[0].tensors(), torch.float32).trusted
