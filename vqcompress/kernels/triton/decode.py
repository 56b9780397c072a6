"""Packed codes to a dense ``Wᵀ`` in the activations' dtype on a GPU, for products of many rows.

The dense weight is a fresh allocation: torch hands the memory of one layer's to the next, on the stream that uses it, so what a
model needs is one dense layer, and a CUDA graph keeps no more than that either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels.column_order import column_order
from vqcompress.kernels.triton.device import (
    OPTIONS,
    STATE_BITS_IN_SHARED,
    device_unsupported_reason,
    size_unsupported_reason,
    stored_bytes,
)
from vqcompress.kernels.triton.value_tables import value_tables
from vqcompress.matrix_view import Shape, matrix_shape

PURPOSE = "many rows: decodes once into scratch memory, then multiplies with the library's dense kernel"
LANES = 1024  # lanes of 8 weights a program: what a table in shared memory is brought there for
WARPS = 8
SHORTEST_CIRCLE = 32  # rows; of shorter trellis columns a state can hold more than the whole


def unsupported_reason(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    return device_unsupported_reason(x) or size_unsupported_reason(shape) or format_unsupported_reason(spec, shape)


def format_unsupported_reason(spec: FormatSpec, shape: Shape) -> str:
    """Why no Triton kernel reads this weight, or an empty string."""
    if isinstance(spec, TrellisSpec) and matrix_shape(shape)[0] < SHORTEST_CIRCLE:
        return f"fewer than {SHORTEST_CIRCLE} outputs"
    return ""


def decode_transposed(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, rows]`` in ``dtype``: the reference's float32 rounded once."""
    rows, columns = matrix_shape(shape)
    codes = stored_bytes(tensors["weight"])
    out = torch.empty(columns, rows, dtype=dtype, device=codes.device)
    with torch.cuda.device_of(codes):
        if isinstance(spec, TrellisSpec):
            _trellis(out, codes, spec, tensors)
        elif isinstance(spec, AdditiveSpec):
            _additive(out, codes, spec, tensors)
        elif isinstance(spec, ScalarSpec):
            _scalar(out, codes, spec, tensors)
    return out


def _trellis(out: Tensor, codes: Tensor, spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> None:
    from vqcompress.kernels.triton.trellis_decode import decode_trellis

    columns, rows = out.shape
    order = column_order(spec, columns, tensors)
    grid = (_programs(columns, -(-rows // 8), len(order.ends)),)
    decode_trellis[grid](
        out,
        codes,
        tensors["scale"].detach(),
        order.columns,
        order.ends,
        value_tables(spec, tensors),
        rows,
        LANES=LANES,
        **scale_constants(spec),
        **trellis_constants(spec, rows),
        num_warps=WARPS,
        **OPTIONS,
    )


def _additive(out: Tensor, codes: Tensor, spec: AdditiveSpec, tensors: Mapping[str, Tensor]) -> None:
    from vqcompress.kernels.triton.additive_decode import decode_additive

    columns, rows = out.shape
    order = column_order(spec, columns, tensors)
    width = 1 << (spec.dimension - 1).bit_length()
    lanes = max(1, LANES * 8 // width)
    grid = (_programs(columns, spec.vectors(rows), len(order.ends), lanes),)
    decode_additive[grid](
        out,
        codes,
        tensors["scale"].detach(),
        order.columns,
        order.ends,
        tensors["codebooks"].detach(),
        rows,
        WIDTH=width,
        LANES=lanes,
        **scale_constants(spec),
        **additive_constants(spec),
        num_warps=WARPS,
        **OPTIONS,
    )


def _scalar(out: Tensor, codes: Tensor, spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> None:
    from vqcompress.kernels.triton.scalar import decode_scalar

    columns, rows = out.shape
    grid = (_programs(columns, -(-rows // 8)),)
    decode_scalar[grid](
        out,
        codes,
        stored_bytes(tensors["group_zero"]),
        tensors["group_scale"].detach(),
        rows,
        columns,
        spec.group_size,
        LANES=LANES,
        **scalar_constants(spec, rows),
        num_warps=WARPS,
        **OPTIONS,
    )


def _programs(columns: int, groups: int, rates: int = 1, lanes: int = LANES) -> int:
    """Enough programs whatever the rates: each rate but the last may leave one program partly filled."""
    return -(-columns * groups // lanes) + rates - 1


def scale_constants(spec: TrellisSpec | AdditiveSpec) -> dict[str, Any]:
    """A scale per row, or one for all."""
    return {"SCALE_STRIDE": int(spec.row_scales)}


def trellis_constants(spec: TrellisSpec, rows: int) -> dict[str, Any]:
    """What the trellis kernels are compiled for."""
    rates = spec.rate_range
    return {
        "STATE_BITS": spec.state_bits,
        "MIN_RATE": rates.start,
        "RATES": len(rates),
        "WHOLE_GROUPS": rows % 8 == 0,
        "IN_SHARED": spec.state_bits <= STATE_BITS_IN_SHARED,
    }


def additive_constants(spec: AdditiveSpec) -> dict[str, Any]:
    """What the additive kernels are compiled for."""
    rates = spec.rate_range
    return {
        "CODE_BITS": spec.code_bits,
        "DIMENSION": spec.dimension,
        "MIN_RATE": rates.start,
        "RATES": len(rates),
    }


def scalar_constants(spec: ScalarSpec, rows: int) -> dict[str, Any]:
    """What the scalar kernels are compiled for."""
    return {"BITS": spec.bits, "WHOLE_GROUPS": rows % 8 == 0}
