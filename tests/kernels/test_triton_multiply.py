"""Few samples times packed weights, and many, by the Triton kernels under the interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqcompress.kernels import KERNELS, Case, choose_kernel, conv2d, decode, decode_case, linear, product_case
from vqcompress.kernels.triton.operations import columns_per_split, multiply, product_unsupported_reason

# Layers of SDXL's UNet, DiT-XL/2 and PixArt, sides divided by about 32; then sizes that fit nothing.
SHAPES = [
    (40, 40),
    (320, 40),
    (40, 160),
    (40, 64),
    (36, 36),
    (144, 36),
    (36, 128),
    (216, 36),
    (33, 35),
    (45, 1),
    (32, 67),
]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def packed(weight):
    return weight.spec, weight.shape, {**weight.tensors, **weight.shared}


def inputs(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(y, expected, dtype):
    error = (y.float() - expected).norm() / expected.norm()
    return y.dtype == dtype and bool(error < TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_shapes(shape, random_weight, interpreted):
    weight = random_weight("trellis", shape)
    x = inputs(3, shape[1])
    assert close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()), torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", ["trellis", "additive", "scalar"])
def test_formats_and_dtypes(name, dtype, random_weight, interpreted):
    weight = random_weight(name, (40, 70))
    x, bias = inputs(2, 9, 70), inputs(40, seed=2)
    expected = F.linear(x, weight.decode(), bias)
    assert close(linear(x.to(dtype), *packed(weight), bias), expected, dtype)


@pytest.mark.parametrize(
    ("name", "geometry"),
    [
        ("trellis", {"min_rate": 0, "rate_bits": 2}),
        ("trellis", {"row_scales": False, "rate_bits": 0, "state_bits": 14}),
        ("additive", {"code_bits": 6, "dimension": 4, "min_rate": 1}),
        ("additive", {"codebooks": 1, "min_rate": 1, "rate_bits": 0, "shared": "book"}),  # plain k-means
        ("scalar", {"bits": 3, "group_size": 64}),
        ("scalar", {"bits": 3, "group_size": 16, "scale_bits": 6}),
    ],
)
def test_geometries(name, geometry, random_weight, interpreted):
    weight = random_weight(name, (50, 41), **geometry)
    x = inputs(5, 41)
    assert close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()), torch.float32)


@pytest.mark.parametrize("name", ["trellis", "scalar"])
def test_inputs_that_are_not_contiguous(name, random_weight, interpreted):
    weight = random_weight(name, (32, 20))
    wide, tall = inputs(4, 40), inputs(20, 5)
    for x in (wide[:, ::2], tall.t(), wide[1:3, 5:25], wide[:1, :20].expand(7, 20)):
        assert close(multiply(x, *packed(weight), None), F.linear(x, weight.decode()), torch.float32)


def test_empty_batch(random_weight, interpreted):
    weight = random_weight("trellis", (32, 20))
    assert linear(torch.zeros(0, 20), *packed(weight), None).shape == (0, 32)
    assert linear(torch.zeros(2, 0, 20), *packed(weight), torch.zeros(32)).shape == (2, 0, 32)


def test_float16_products_do_not_overflow(random_weight, interpreted):
    """Unscaled sums beyond 65504 whose scaled results fit (quanto #231: black images)."""
    weight = random_weight("trellis", (32, 64), rate_bits=0)
    weight.tensors["scale"].fill_(1e-3)
    x = torch.full((1, 64), 6e4, dtype=torch.float16) * inputs(1, 64).sign().half()
    expected = F.linear(x.float(), weight.decode())
    assert float((expected / 1e-3).abs().max()) > 65504
    assert close(linear(x, *packed(weight), None), expected, torch.float16)


def test_more_samples_are_decoded_for(random_weight, interpreted):
    weight = random_weight("trellis", (32, 20))
    spec, shape, _ = packed(weight)
    assert choose_kernel(spec, shape, product_case(torch.zeros(32, 20))).name == "triton_multiply"
    assert choose_kernel(spec, shape, product_case(torch.zeros(33, 20))).name == "triton_decode"
    case = Case(torch.device("cpu"), torch.float32, 33, interpreted=True)
    assert "33 samples" in product_unsupported_reason(spec, shape, case)
    x = inputs(33, 20)
    torch.testing.assert_close(linear(x, *packed(weight), None), F.linear(x, weight.decode()))


def test_convolutions_are_decoded_for(random_weight, interpreted):
    weight = random_weight("trellis", (32, 4, 3, 3))
    x = inputs(1, 4, 5, 5)
    assert choose_kernel(weight.spec, weight.shape, decode_case(x.device, x.dtype)).name == "triton_decode"
    torch.testing.assert_close(conv2d(x, *packed(weight), None), F.conv2d(x, weight.decode()))


def test_gradients_in_the_input(random_weight, interpreted):
    weight = random_weight("trellis", (32, 20))
    x = inputs(3, 20).requires_grad_()
    linear(x, *packed(weight), None).square().sum().backward()
    reference = x.detach().clone().requires_grad_()
    F.linear(reference, weight.decode()).square().sum().backward()
    torch.testing.assert_close(x.grad, reference.grad)


def test_learned_tables(random_weight, interpreted):
    from dataclasses import replace

    plain = random_weight("trellis", (32, 20), min_rate=1, rate_bits=2)
    spec = replace(plain.spec, codebook="tables", codebook_rates=(2, 3))
    tables = inputs(*spec.codebook_shape).half()
    weight = replace(plain, spec=spec, shared={"codebooks": tables})
    assert torch.equal(decode(*packed(weight), torch.float32), weight.decode())
    tables.mul_(2)  # as an optimizer would
    assert torch.equal(decode(*packed(weight), torch.float32), weight.decode())


def test_bfloat16_decoding_is_within_a_rounding(random_weight, interpreted):
    """The interpreter cuts bfloat16 off where a GPU rounds to nearest."""
    weight = random_weight("additive", (40, 16))
    decoded, exact = decode(*packed(weight), torch.bfloat16), weight.decode()
    assert decoded.dtype == torch.bfloat16
    assert bool(((decoded.float() - exact).abs() <= exact.abs() * 2**-7).all())


@pytest.mark.parametrize(
    ("columns", "tiles", "processors"), [(1280, 10, 132), (5, 80, 132), (11520, 10, 132), (70, 1, 4)]
)
def test_splits_cover_the_columns(columns, tiles, processors):
    per_split = columns_per_split(columns, tiles, processors)
    assert per_split % 32 == 0
    assert per_split >= 32
    assert -(-columns // per_split) * tiles <= 2 * processors + tiles


def test_the_table_begins_with_the_most_special():
    names = ["cuda_multiply", "triton_multiply", "cuda_decode", "triton_decode"]
    assert [kernel.name for kernel in KERNELS][: len(names)] == names
