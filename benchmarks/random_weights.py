"""Packed weights of random codes, of every format and with every transform: any byte is a valid code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.rates import pack_rates
from vqcompress.matrix_view import matrix_shape


@dataclass(frozen=True)
class Extras:
    """What a weight has beside its codes. ``rotation`` divides the outputs, or is 0."""

    row_scales: bool = True
    column_scales: bool = False
    outliers: int = 0
    rotation: int = 0
    learned: bool = False


PLAIN = Extras()
Coded = tuple[FormatSpec, tuple[int, ...], dict[str, Tensor]]


def trellis(shape: tuple[int, ...], state_bits: int, halves: tuple[int, ...], extras: Extras = PLAIN) -> Coded:
    """Columns of the rates ``halves`` (half bits a weight) in turn."""
    outputs, columns = matrix_shape(shape)
    whole = all(rate % 2 == 0 for rate in halves)
    stored = torch.tensor([rate // 2 if whole else rate for rate in halves])
    rates, low = stored.repeat(columns)[:columns], int(stored.min())
    rate_bits = int(rates.max() - low).bit_length()
    unit = 2 if whole else 1
    size = sum(packed_bytes(outputs * rate * unit // 2, 1) for rate in rates.tolist())
    learned = tuple(sorted({max(1, rate // 2) for rate in halves}))[:1] if extras.learned else ()
    spec = TrellisSpec(
        state_bits,
        low,
        rate_bits,
        0.1,
        extras.row_scales,
        size,
        codebook="tables" if learned else None,
        codebook_rates=learned,
        rotation=extras.rotation,
        column_scales=extras.column_scales,
        outliers=extras.outliers,
        half_rates=not whole,
    )
    return spec, shape, _tensors(spec, shape, {"rates": pack_rates(rates, low, rate_bits)} if rate_bits else {})


def additive(shape: tuple[int, ...], dimension: int, code_bits: int, codebooks: int, extras: Extras = PLAIN) -> Coded:
    """Columns of no to ``codebooks`` codes a vector in turn."""
    outputs, columns = matrix_shape(shape)
    rates, rate_bits = torch.arange(columns) % (codebooks + 1), codebooks.bit_length()
    vectors = -(-outputs // dimension)
    size = sum(packed_bytes(vectors * rate, code_bits) for rate in rates.tolist())
    spec = AdditiveSpec(
        dimension,
        code_bits,
        codebooks,
        0,
        rate_bits,
        None,
        extras.row_scales,
        size,
        extras.column_scales,
        extras.outliers,
    )
    return spec, shape, _tensors(spec, shape, {"rates": pack_rates(rates, 0, rate_bits)})


def scalar(shape: tuple[int, ...], bits: int, group_size: int, scale_bits: int = 16) -> Coded:
    """Codes, zeros and, where they are packed, scales of random bits."""
    spec = ScalarSpec(bits, group_size, scale_bits)
    return spec, shape, _tensors(spec, shape, {})


def _tensors(spec: FormatSpec, shape: tuple[int, ...], given: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    outputs, columns = matrix_shape(shape)
    sizes = dict(spec.tensor_shapes(outputs, columns))
    if spec.codebook is not None:
        sizes["codebooks"] = spec.codebook_shape, torch.float16
    found = {}
    for name, (size, dtype) in sizes.items():
        if name == "outlier_positions":
            chosen = torch.randperm(outputs * columns, generator=generator)[: size[0]]
            found[name] = chosen.sort().values.int()
        elif dtype == torch.int8:
            found[name] = torch.randint(-128, 128, size, generator=generator, dtype=torch.int8)
        else:
            found[name] = torch.randn(size, generator=generator).to(dtype)
    return found | given
