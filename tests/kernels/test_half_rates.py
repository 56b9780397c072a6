"""Columns at half-integer rates by every kernel, against a decoder that reads the description bit by bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import random_trellis
from tests.formats.test_trellis import literal_decode
from vqcompress.formats.column_scales import unpack_column_scales
from vqcompress.formats.rotation import unrotate
from vqcompress.formats.trellis_table import max_rate
from vqcompress.kernels import decode, linear
from vqcompress.kernels.cpu import operations as cpu
from vqcompress.kernels.triton import operations as triton
from vqcompress.quantized_weight import QuantizedWeight


def every_rate(outputs: int, state_bits: int, **geometry) -> QuantizedWeight:
    """Two columns of each rate from 0 to the largest, in half bits, out of order; lone columns of some."""
    rates = torch.arange(2 * max_rate(state_bits) + 1)
    if state_bits == 16:  # what is compiled for each rate takes a second
        rates = torch.tensor([0, 1, 3, 5, 8, 11, 13, 15, 16])
    order = torch.randperm(2 * len(rates), generator=torch.Generator().manual_seed(outputs))
    mixed = torch.cat([rates, rates])[order][: 2 * len(rates) - 3]
    return random_trellis(
        (outputs, len(mixed)), state_bits=state_bits, min_rate=0, rate_bits=5, half_rates=True, rates=mixed, **geometry
    )


def packed(weight):
    return weight.spec, weight.shape, {**weight.tensors, **weight.shared}


SIZES = [(outputs, bits) for bits in (8, 12, 16) for outputs in (16, 17, 32, 33, 40, 47, 64, 127, 130)]


@pytest.mark.parametrize(("outputs", "state_bits"), [*SIZES, (1, 8), (2, 8), (3, 10), (7, 16)])
def test_reference_and_loops_are_the_description(outputs, state_bits):
    weight = every_rate(outputs, state_bits, tail=0.1)
    expected = literal_decode(weight)
    assert torch.equal(weight.decode(), expected)
    assert torch.equal(cpu.decode_transposed(*packed(weight)).t(), expected)


@pytest.mark.parametrize(("outputs", "state_bits"), [*SIZES, (3, 8), (8, 10)])
def test_product_of_a_sample_is_the_dense_one(outputs, state_bits):
    weight = every_rate(outputs, state_bits)
    decoded, columns = literal_decode(weight), weight.shape[1]
    # One column at a time, so that no sum hides a wrong weight.
    for column in range(columns):
        x = torch.zeros(1, columns)
        x[0, column] = 1
        assert torch.equal(cpu.multiply(x, *packed(weight), None)[0], decoded[:, column])
    x = torch.randn(2, columns, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cpu.multiply(x, *packed(weight), None), F.linear(x, decoded))


@pytest.mark.parametrize(("outputs", "state_bits"), [(o, b) for o, b in SIZES if o >= triton.SHORTEST_CIRCLE])
def test_triton_decodes_the_description(outputs, state_bits, interpreted):
    weight = every_rate(outputs, state_bits)
    assert torch.equal(triton.decode_transposed(*packed(weight)).t(), literal_decode(weight))


@pytest.mark.parametrize(("outputs", "state_bits"), [(33, 12), (64, 16), (130, 8)])
def test_triton_products(outputs, state_bits, interpreted):
    weight = every_rate(outputs, state_bits)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, weight.decode())
    torch.testing.assert_close(triton.multiply(x, *packed(weight), None), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("min_rate", [1, 2, 3, 5])
@pytest.mark.parametrize("rate_bits", [0, 1, 3])
def test_rates_may_begin_anywhere(min_rate, rate_bits, interpreted):
    weight = random_trellis((45, 20), min_rate=min_rate, rate_bits=rate_bits, half_rates=True)
    expected = literal_decode(weight)
    assert torch.equal(weight.decode(), expected)
    assert torch.equal(cpu.decode_transposed(*packed(weight)).t(), expected)
    assert torch.equal(triton.decode_transposed(*packed(weight)).t(), expected)


@pytest.mark.parametrize("device", ["cpu", "triton"])
def test_every_transform_goes_over_half_rates(device, request):
    """Column scales, rotation and outliers, with learned tables for some numbers of bits."""
    if device == "triton":
        request.getfixturevalue("interpreted")
    plain = every_rate(48, 12)
    spec = replace(plain.spec, rotation=16, column_scales=True, outliers=3, codebook="tables", codebook_rates=(1, 2, 4))
    generator = torch.Generator().manual_seed(3)
    tensors = plain.tensors | {
        "gains": torch.randint(-128, 128, (1, -(-plain.shape[1] // 2)), generator=generator, dtype=torch.int8),
        "outlier_positions": torch.tensor([5, 700, 1000], dtype=torch.int32),
        "outlier_values": torch.tensor([3.0, -2.0, 1.0]).half(),
    }
    tables = torch.randn(spec.codebook_shape, generator=generator).half()
    weight = QuantizedWeight(spec, plain.shape, tensors, {"codebooks": tables})
    unrotated = literal_decode(replace(plain, spec=spec), tables)
    expected = unrotate(unrotated.t(), 16) * unpack_column_scales(tensors["gains"], plain.shape[1])[:, None]
    expected[[0, 14, 20], [5, 28, 40]] += tensors["outlier_values"].float()
    assert torch.equal(weight.decode(), expected.t())
    torch.testing.assert_close(decode(*packed(weight), torch.float32), expected.t(), rtol=1e-6, atol=1e-7)
    for samples in (1, 3, 40):
        x = torch.randn(samples, plain.shape[1], generator=generator)
        y = linear(x, *packed(weight), None)
        torch.testing.assert_close(y, x @ expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_reference():
    plain = every_rate(37, 12)
    spec = replace(plain.spec, codebook="tables", codebook_rates=(1, 2, 3))
    tables = torch.randn(spec.codebook_shape, generator=torch.Generator().manual_seed(1)).half().float()
    named = {**plain.tensors, "codebooks": tables.requires_grad_()}
    named["scale"] = named["scale"].float().requires_grad_()
    grad = torch.randn(plain.shape[1], 37, generator=torch.Generator().manual_seed(2))
    spec.decode_transposed(*plain.shape, named).backward(grad)
    detached = {name: tensor.detach() for name, tensor in named.items()}
    found = cpu.parameter_gradients(spec, plain.shape, detached, grad)
    for name in ("scale", "codebooks"):
        torch.testing.assert_close(found[name], named[name].grad, rtol=1e-4, atol=1e-5)
