"""Weights made of random codes: every format, without a quantizer."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.rates import join_blocks, pack_rates
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

Make = Callable[..., QuantizedWeight]


def _integers(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)


def _scale(rows: int, row_scales: bool, generator: torch.Generator) -> Tensor:
    return (0.02 + 0.02 * torch.rand(rows if row_scales else 1, generator=generator)).half()


def _random_stream(rates: Tensor, symbols: Callable[[int], tuple[int, int]], generator: torch.Generator) -> Tensor:
    blocks = {}
    for rate in torch.unique(rates).tolist():
        count, bits = symbols(rate)
        columns = int((rates == rate).sum())
        blocks[rate] = pack(_integers(1 << bits, (columns, count), generator), bits) if count and bits else None
        if blocks[rate] is None:
            blocks[rate] = torch.zeros(columns, 0, dtype=torch.int8)
    return join_blocks(blocks)


def random_trellis(
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    state_bits: int = 12,
    min_rate: int = 2,
    rate_bits: int = 1,
    row_scales: bool = True,
    tail: float = 0.0,
) -> QuantizedWeight:
    """Random trellis codes; column rates drawn from ``min_rate … min_rate + 2**rate_bits - 1``."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = matrix_shape(shape)
    rates = min_rate + _integers(1 << rate_bits, (columns,), generator).long()
    codes = _random_stream(rates, lambda rate: (rows, rate), generator)
    spec = TrellisSpec(state_bits, min_rate, rate_bits, tail, row_scales, codes.numel())
    tensors = {"weight": codes, "scale": _scale(rows, row_scales, generator)}
    if rate_bits:
        tensors["rates"] = pack_rates(rates, min_rate, rate_bits)
    return QuantizedWeight(spec, tuple(shape), tensors)


def random_additive(
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    dimension: int = 8,
    code_bits: int = 8,
    codebooks: int = 3,
    min_rate: int = 2,
    rate_bits: int = 1,
    row_scales: bool = True,
    shared: str | None = None,
) -> QuantizedWeight:
    """Random additive codes; ``shared`` names a codebook of the component (the same for every seed)."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = matrix_shape(shape)
    rates = min_rate + _integers(1 << rate_bits, (columns,), generator).long()
    vectors = -(-rows // dimension)
    codes = _random_stream(rates, lambda rate: (vectors * rate, code_bits), generator)
    spec = AdditiveSpec(dimension, code_bits, codebooks, min_rate, rate_bits, shared, row_scales, codes.numel())
    books_generator = torch.Generator().manual_seed(99) if shared else generator
    books = torch.randn(spec.codebook_shape, generator=books_generator).half()
    tensors = {"weight": codes, "scale": _scale(rows, row_scales, generator)}
    if rate_bits:
        tensors["rates"] = pack_rates(rates, min_rate, rate_bits)
    if shared is None:
        tensors["codebooks"] = books
    return QuantizedWeight(spec, tuple(shape), tensors, {"codebooks": books} if shared else {})


def random_scalar(shape: tuple[int, ...], *, seed: int = 0, bits: int = 4, group_size: int = 8) -> QuantizedWeight:
    """Random scalar codes."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = matrix_shape(shape)
    spec = ScalarSpec(bits, group_size)
    groups = spec.groups(columns)
    tensors = {
        "weight": pack(_integers(1 << bits, (columns, rows), generator), bits).reshape(1, -1),
        "group_scale": (0.01 + 0.01 * torch.rand(groups, rows, generator=generator)).half(),
        "group_zero": pack(_integers(1 << bits, (groups, rows), generator), bits),
    }
    assert tensors["group_zero"].shape == (groups, packed_bytes(rows, bits))
    return QuantizedWeight(spec, tuple(shape), tensors)


MAKERS: dict[str, Make] = {"trellis": random_trellis, "additive": random_additive, "scalar": random_scalar}


@pytest.fixture
def random_weight() -> Make:
    """``random_weight(format, shape, **geometry) -> QuantizedWeight``."""

    def make(name: str, shape: tuple[int, ...], **geometry) -> QuantizedWeight:
        return MAKERS[name](shape, **geometry)

    return make


@pytest.fixture
def check_spec() -> Callable[[QuantizedWeight], FormatSpec]:
    """Assert that a weight's tensors are what its spec lists, and give the spec."""

    def check(weight: QuantizedWeight) -> FormatSpec:
        shapes = weight.spec.tensor_shapes(*matrix_shape(weight.shape))
        assert {name: (tuple(t.shape), t.dtype) for name, t in weight.tensors.items()} == shapes
        return weight.spec

    return check
