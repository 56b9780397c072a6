"""One or two samples times packed codes on the CPU, without a decoded weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqcompress.kernels import Case, choose_kernel, linear, product_case
from vqcompress.kernels.cpu.operations import multiply, product_unsupported_reason


def packed(weight):
    return weight.spec, weight.shape, {**weight.tensors, **weight.shared}


@pytest.mark.parametrize("shape", [(64, 20), (33, 7), (7, 5), (1, 3), (200, 1)], ids=lambda s: "x".join(map(str, s)))
def test_product_is_the_dense_one(shape, random_weight):
    weight = random_weight("trellis", shape)
    x = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(1))
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(multiply(x, *packed(weight), bias), F.linear(x, weight.decode(), bias))


@pytest.mark.parametrize(
    "geometry",
    [{}, {"code_bits": 6, "dimension": 4, "min_rate": 0}, {"code_bits": 10, "dimension": 5, "row_scales": False}],
)
def test_additive_codes(geometry, random_weight):
    weight = random_weight("additive", (42, 9), **geometry)
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, random_weight):
    weight = random_weight("trellis", (64, 20))
    x = torch.randn(1, 1, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = linear(x, *packed(weight), None)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), F.linear(x.float(), weight.decode()), rtol=0.02, atol=0.02)


def test_columns_of_rate_zero(random_weight):
    weight = random_weight("trellis", (40, 12), min_rate=0)
    x = torch.randn(1, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()))


def test_inputs_that_are_not_contiguous_and_empty_batches(random_weight):
    weight = random_weight("trellis", (40, 12))
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)).t()
    torch.testing.assert_close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()))
    assert multiply(x[:0], *packed(weight), None).shape == (0, 40)


def test_it_serves_one_and_two_samples(random_weight):
    weight, other = random_weight("trellis", (40, 12)), random_weight("scalar", (40, 12))
    assert choose_kernel(weight.spec, weight.shape, product_case(torch.zeros(2, 12))).name == "cpu_row"
    assert choose_kernel(weight.spec, weight.shape, product_case(torch.zeros(3, 12))).name == "cpu_numba"
    assert choose_kernel(other.spec, other.shape, product_case(torch.zeros(1, 12))).name == "cpu_row"
    case = Case(torch.device("cpu"), torch.float32, 3)
    assert "3 samples" in product_unsupported_reason(weight.spec, weight.shape, case)


def test_threads_share_a_large_weight(random_weight):
    """Columns are divided between threads; the values must not depend on it."""
    weight = random_weight("scalar", (1024, 1030), bits=2, group_size=64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared = linear(torch.eye(1030)[:4], *packed(weight), None)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(shared, weight.decode()[:, :4].t())


@pytest.mark.parametrize("shape", [(40, 33), (7, 64), (129, 20)])
def test_packed_scales_of_scalar_codes(shape, random_weight):
    weight = random_weight("scalar", shape, bits=3, group_size=16, scale_bits=6)
    x = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()), rtol=1e-5, atol=1e-5)
