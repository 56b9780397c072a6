"""One row of inputs times packed codes on the CPU: values go from the tables into the sums and are never stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels.cpu import decode as cpu_numba
from vqcompress.kernels.cpu.threads import share
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.matrix_view import Shape

PURPOSE = "one or two rows: looks up and multiplies in one pass, reading the codes alone"
MOST_ROWS = 2  # each costs as much as decoding
TRELLIS_PART, SCALAR_PART = 8, 32  # outputs that the loops take at a time


def unsupported_reason(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    if len(shape) != 2 or not x.is_floating_point():
        return "only products with a matrix"
    if x.numel() > MOST_ROWS * shape[1]:
        return f"{x.numel() // shape[1]} rows, more than {MOST_ROWS}"
    return cpu_numba.unsupported_reason(spec, shape, x)


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., rows]`` in the dtype of ``x``; sums and scale in float32."""
    rows, columns = shape
    inputs, offset, scale = as_floats(x), None if bias is None else as_floats(bias), _row_scale(spec, tensors)
    y, unit = torch.empty(*x.shape[:-1], rows, dtype=torch.float32), _outputs(spec)
    parts = -(-rows // unit)
    total = torch.empty(parts * unit)
    last = (0, 0, 0) if scale is None else (scale.data_ptr(), scale.numel(), scale.itemsize)
    for row in range(y.numel() // max(1, rows)):
        at = inputs.data_ptr() + 4 * columns * row
        blocks, kept = _BLOCKS[type(spec)](at, total.data_ptr(), spec, tensors, rows, columns)
        head = (y.data_ptr() + 4 * rows * row, rows, total.data_ptr(), unit, *last)
        add = 0 if offset is None else offset.data_ptr()
        share(parts, rows * columns, _loops().row_product, *head, add, len(blocks), *chain.from_iterable(blocks))
        del kept  # held until here: the blocks have nothing but addresses
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def as_floats(tensor: Tensor) -> Tensor:
    """Contiguous, in float32; the same tensor where it is so already."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.float().contiguous()


def _row_scale(spec: FormatSpec, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return None if isinstance(spec, ScalarSpec) else _as_scale(tensors["scale"])


def _as_scale(scale: Tensor) -> Tensor:
    """Contiguous, in float16 or float32."""
    return scale if scale.dtype == torch.float16 and scale.is_contiguous() else as_floats(scale)


@lru_cache(maxsize=1)
def _loops() -> Any:
    """numba's part, imported once: an import statement takes microseconds each time."""
    from vqcompress.kernels.cpu import additive as cpu_additive_loops
    from vqcompress.kernels.cpu import row_loops as cpu_row_loops
    from vqcompress.kernels.cpu import scalar as cpu_scalar_loops
    from vqcompress.kernels.cpu import trellis_row as cpu_trellis_row

    return SimpleNamespace(
        take=cpu_row_loops.take.ctypes,
        row_product=cpu_row_loops.row_product,
        step=cpu_row_loops.STEP,
        trellis=cpu_trellis_row.trellis_row,
        additive=cpu_additive_loops.additive_row,
        scalar=cpu_scalar_loops.scalar_row,
    )


def _outputs(spec: FormatSpec) -> int:
    """How many outputs the loops take at a time."""
    if isinstance(spec, AdditiveSpec):
        return spec.dimension
    return TRELLIS_PART if isinstance(spec, TrellisSpec) else SCALAR_PART


@dataclass(frozen=True)
class _Block:
    """Columns of one rate, from ``first`` to ``last`` in stored order; their bytes begin at byte ``start``."""

    rate: int
    first: int
    last: int
    start: int


@dataclass(frozen=True)
class _Plan:
    """``order [columns]`` (int64): the columns in stored order."""

    order: Tensor
    blocks: tuple[_Block, ...]


_PLANS: TensorCache[_Plan] = TensorCache()


def _plan(spec: TrellisSpec | AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> _Plan:
    codes, bits = tensors["weight"], spec.bits_per_rate(rows)

    def make() -> _Plan:
        rates = spec.rates(columns, tensors).cpu().numpy()
        order = torch.from_numpy(np.argsort(rates, kind="stable").astype(np.int64))
        known, counts = np.unique(rates, return_counts=True)
        blocks, first, start = [], 0, 0
        for rate, count in zip(known.tolist(), counts.tolist(), strict=True):
            if rate:
                blocks.append(_Block(rate, first, first + count, start))
            first, start = first + count, start + count * ((bits * rate + 7) // 8)
        if start > codes.numel():
            raise CheckpointError(
                f"a packed weight of {rows}x{columns} needs {start} bytes of codes by its rates and has {codes.numel()}; "
                "its file is not as it was written, run `vqcompress verify` on its folder"
            )
        return _Plan(order, tuple(blocks))

    return _PLANS(tensors.get("rates", codes), (spec, rows, columns), make)


def _ordered(x: int, plan: _Plan) -> Tensor:
    """The inputs at the address ``x`` in stored order."""
    values = torch.empty(len(plan.order))
    _loops().take(x, plan.order.data_ptr(), values.data_ptr(), len(values))
    return values


Blocks = tuple[list[list[int]], tuple]
"""Of each block its loop's address and what it is called with, then whatever must live until it has been."""


def _block(loop: Any, *numbers: int) -> list[int]:
    return [loop.address, *numbers, *[0] * (_loops().step - 1 - len(numbers))]


def _trellis(x: int, total: int, spec: TrellisSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> Blocks:
    plan, codes = _plan(spec, tensors, rows, columns), tensors["weight"]
    begin, values = codes.data_ptr(), _ordered(x, plan)
    end, tables = begin + codes.numel(), [_table(spec, block.rate, tensors) for block in plan.blocks]
    blocks = [
        _block(
            _loops().trellis(spec.state_bits, block.rate),
            total,
            values.data_ptr() + 4 * block.first,
            block.last - block.first,
            begin + block.start,
            end,
            table.data_ptr(),
            rows,
        )
        for block, table in zip(plan.blocks, tables, strict=True)
    ]
    return blocks, (values, tables)


_BOOKS: TensorCache[Tensor] = TensorCache()


def _books(tensors: Mapping[str, Tensor]) -> Tensor:
    """The learned tables in float32, made once: layers share them."""
    books = tensors["codebooks"]
    return _BOOKS(books, tuple(books.shape), lambda: as_floats(books.detach()))


def _table(spec: TrellisSpec, rate: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The value table of one rate, learned or the formula's, float32 ``[2**state_bits]``."""
    if rate in spec.codebook_rates:
        return _books(tensors)[spec.codebook_rates.index(rate)]
    return _formula_table(spec.state_bits, spec.tail, rate)


@lru_cache(maxsize=64)
def _formula_table(state_bits: int, tail: float, rate: int) -> Tensor:
    return value_table(state_bits, rate, tail).float()


def _additive(x: int, total: int, spec: AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> Blocks:
    plan, books, vectors = _plan(spec, tensors, rows, columns), _books(tensors), spec.vectors(rows)
    begin, values = tensors["weight"].data_ptr(), _ordered(x, plan)
    blocks = [
        _block(
            _loops().additive(spec.dimension, spec.code_bits, block.rate),
            total,
            values.data_ptr() + 4 * block.first,
            block.last - block.first,
            begin + block.start,
            books.data_ptr(),
            vectors,
        )
        for block in plan.blocks
    ]
    return blocks, (values, books)


def _scalar(x: int, total: int, spec: ScalarSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> Blocks:
    codes, zeros, scales = tensors["weight"], tensors["group_zero"], _as_scale(tensors["group_scale"])
    numbers = (total, x, columns, codes.data_ptr(), codes.nbytes, zeros.data_ptr(), zeros.nbytes)
    block = _block(
        _loops().scalar(spec.bits), *numbers, scales.data_ptr(), scales.itemsize, len(scales), rows, spec.group_size
    )
    return [block], (scales,)


_BLOCKS: dict[type, Callable[..., Blocks]] = {
    TrellisSpec: _trellis,
    AdditiveSpec: _additive,
    ScalarSpec: _scalar,
}
