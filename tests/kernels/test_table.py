"""Every kernel of the table equals the reference bit for bit, on every geometry."""

from __future__ import annotations

import pytest
import torch

from vqcompress.kernels import KERNELS, Case, choose_kernel, decode_case, product_case

CASES = {
    "trellis": [
        {"shape": (24, 40)},
        {"shape": (7, 5)},
        {"shape": (3, 4), "state_bits": 16, "min_rate": 1, "rate_bits": 1},
        {"shape": (1, 3), "state_bits": 12},
        {"shape": (33, 20), "rate_bits": 2, "min_rate": 1},
        {"shape": (33, 20), "rate_bits": 2, "min_rate": 0, "tail": 0.05},
        {"shape": (64, 9), "rate_bits": 0, "min_rate": 3, "row_scales": False},
        {"shape": (6, 4, 3, 3), "state_bits": 8},
        {"shape": (64, 64), "state_bits": 16, "rate_bits": 2, "min_rate": 2},
        {"shape": (50, 11), "state_bits": 10, "rate_bits": 0, "min_rate": 5},
        {"shape": (41, 6), "state_bits": 14, "rate_bits": 1, "min_rate": 6},
        {"shape": (35, 4), "state_bits": 16, "rate_bits": 1, "min_rate": 7},
        {"shape": (40, 3, 3, 3), "state_bits": 12, "rate_bits": 2, "min_rate": 0},
        {"shape": (48, 6), "state_bits": 16, "rate_bits": 0, "min_rate": 8},
    ],
    "additive": [
        {"shape": (24, 40)},
        {"shape": (21, 10)},
        {"shape": (5, 4), "dimension": 8},
        {"shape": (24, 10), "code_bits": 6, "codebooks": 4, "rate_bits": 2, "min_rate": 1},
        {"shape": (24, 10), "code_bits": 10, "dimension": 4},
        {"shape": (24, 10), "code_bits": 5, "min_rate": 0, "row_scales": False},
        {"shape": (16, 4, 3, 3), "rate_bits": 0, "shared": "book"},
    ],
    "scalar": [
        {"shape": (24, 40)},
        {"shape": (7, 13), "bits": 3, "group_size": 4},
        {"shape": (9, 4, 3, 3), "bits": 2, "group_size": 64},
        {"shape": (5, 6), "bits": 8},
        {"shape": (24, 40), "bits": 3, "scale_bits": 6},
        {"shape": (7, 13), "bits": 2, "group_size": 4, "scale_bits": 3},
        {"shape": (9, 4, 3, 3), "bits": 8, "scale_bits": 8},
    ],
}
FLAT = [(name, case) for name, cases in CASES.items() for case in cases]


# The CUDA kernels run on a CPU in tests/kernels/test_cuda_source.py.
DECODERS = [kernel for kernel in KERNELS[:-1] if kernel.multiply is None and kernel.name != "cuda_decode"]


@pytest.mark.parametrize(("name", "case"), FLAT, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FLAT)])
@pytest.mark.parametrize("kernel", DECODERS, ids=lambda kernel: kernel.name)
def test_kernel_equals_reference(kernel, name, case, random_weight, check_spec, request):
    if kernel.name.startswith("triton"):
        request.getfixturevalue("interpreted")
    case = dict(case)
    weight = random_weight(name, case.pop("shape"), **case)
    spec = check_spec(weight)
    tensors = {**weight.tensors, **weight.shared}
    if kernel.unsupported_reason(spec, weight.shape, decode_case(torch.device("cpu"), torch.float32)):
        assert kernel.name.startswith("triton")
        assert weight.shape[0] < 32
        return
    for dtype in (torch.float32, torch.float16):
        decoded = kernel.decode_transposed(spec, weight.shape, tensors, dtype)
        expected = KERNELS[-1].decode_transposed(spec, weight.shape, tensors, dtype)
        assert decoded.dtype == dtype
        assert torch.equal(decoded, expected)
        assert torch.equal(decoded.signbit(), expected.signbit())


def test_kernels_that_multiply_decode_as_another_does():
    decoders = {kernel.decode_transposed for kernel in KERNELS if kernel.multiply is None}
    own = {kernel.decode_transposed for kernel in KERNELS if kernel.multiply}
    assert own <= decoders


def test_a_kernel_says_why_it_declines(random_weight):
    weight = random_weight("trellis", (64, 8))
    case = Case(torch.device("cpu"), torch.float32, samples=1)
    reasons = {kernel.name: kernel.unsupported_reason(weight.spec, weight.shape, case) for kernel in KERNELS}
    assert "cpu" in reasons["triton_decode"] or "not installed" in reasons["triton_decode"]
    assert reasons["cpu_numba"] == reasons["reference"] == ""
    assert all(kernel.purpose for kernel in KERNELS)


def test_integer_inputs_are_no_products(random_weight):
    weight = random_weight("trellis", (64, 8))
    case = Case(torch.device("cpu"), torch.int8, samples=1)
    assert choose_kernel(weight.spec, weight.shape, case).multiply is None


def test_order_ends_with_the_reference():
    assert KERNELS[-1].name == "reference"


def test_cpu_is_served_by_the_compiled_kernel(random_weight):
    weight = random_weight("trellis", (8, 8))
    case = decode_case(torch.device("cpu"), torch.float32)
    assert choose_kernel(weight.spec, weight.shape, case).name == "cpu_numba"
    on_meta = product_case(torch.zeros(1, 8, device="meta"))
    assert choose_kernel(weight.spec, weight.shape, on_meta).name == "reference"
