"""One row of inputs times packed codes on the CPU: values go from the tables into the sums and are never stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels import cpu_numba
from vqcompress.kernels.column_order import bits_per_rate
from vqcompress.kernels.cpu_threads import share
from vqcompress.kernels.derived import Derived

Shape = tuple[int, ...]

PURPOSE = "one or two rows: looks up and multiplies in one pass, reading the codes alone"
MOST_ROWS = 2  # each costs as much as decoding
SCALAR_PART = 32  # outputs that the scalar loop takes at a time


def refusal(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    if len(shape) != 2 or not x.is_floating_point():
        return "only products with a matrix"
    if x.numel() > MOST_ROWS * shape[1]:
        return f"{x.numel() // shape[1]} rows, more than {MOST_ROWS}"
    return cpu_numba.refusal(spec, shape, x)


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., rows]`` in the dtype of ``x``; sums and scale in float32."""
    from vqcompress.kernels.cpu_row_loops import finish

    rows, columns = shape
    inputs = as_floats(x)
    y = torch.empty(*x.shape[:-1], rows, dtype=torch.float32)
    scale, offset = _row_scale(spec, tensors), None if bias is None else as_floats(bias)
    for row in range(y.numel() // max(1, rows)):
        total = _SUMS[type(spec)](inputs.data_ptr() + 4 * columns * row, spec, tensors, rows, columns)
        finish(
            total,
            0 if scale is None else scale.data_ptr(),
            1 if scale is None else scale.numel(),
            0 if offset is None else offset.data_ptr(),
            y.data_ptr() + 4 * rows * row,
            rows,
        )
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def as_floats(tensor: Tensor) -> Tensor:
    """Contiguous, in float32; the same tensor where it is so already."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.float().contiguous()


def _row_scale(spec: FormatSpec, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return None if isinstance(spec, ScalarSpec) else as_floats(tensors["scale"])


@dataclass(frozen=True)
class _Block:
    """Columns of one rate, from ``first`` to ``last`` in stored order; their bytes begin at byte ``start``."""

    rate: int
    first: int
    last: int
    start: int


@dataclass(frozen=True)
class _Plan:
    """``order [columns]`` (int32): the columns in stored order."""

    order: np.ndarray
    blocks: tuple[_Block, ...]


_PLANS: Derived[_Plan] = Derived()


def _plan(spec: TrellisSpec | AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> _Plan:
    codes, bits = tensors["weight"], bits_per_rate(spec, rows)

    def make() -> _Plan:
        rates = spec.rates(columns, tensors).cpu().numpy()
        order = np.argsort(rates, kind="stable").astype(np.int32)
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


def _ordered(x: int, plan: _Plan) -> list[np.ndarray]:
    """The inputs of every block, from those at the address ``x``."""
    from vqcompress.kernels.cpu_row_loops import take

    values = np.empty(len(plan.order), np.float32)
    take(x, plan.order, values)
    return [values[block.first : block.last] for block in plan.blocks]


def _trellis(x: int, spec: TrellisSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> np.ndarray:
    from vqcompress.kernels.cpu_trellis_row import OUTPUTS, trellis_row

    plan, codes = _plan(spec, tensors, rows, columns), tensors["weight"]
    begin, groups = codes.data_ptr(), -(-rows // OUTPUTS)
    end, total = begin + codes.numel(), np.zeros(OUTPUTS * groups, np.float32)
    calls = [
        (trellis_row(spec.state_bits, b.rate), values, begin + b.start, cpu_numba.trellis_table(spec, b.rate, tensors))
        for b, values in zip(plan.blocks, _ordered(x, plan), strict=True)
    ]

    def work(first: int, last: int) -> None:
        for loop, values, at, table in calls:
            loop(first, last, total, values, at, end, table, rows)

    share(groups, rows * columns, work)
    return total


def _additive(x: int, spec: AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> np.ndarray:
    from vqcompress.kernels.cpu_additive_loops import additive_row

    plan, books, vectors = _plan(spec, tensors, rows, columns), as_floats(tensors["codebooks"]), spec.vectors(rows)
    begin, total = tensors["weight"].data_ptr(), np.zeros(vectors * spec.dimension, np.float32)
    calls = [
        (additive_row(spec.dimension, spec.code_bits, b.rate), values, begin + b.start)
        for b, values in zip(plan.blocks, _ordered(x, plan), strict=True)
    ]

    def work(first: int, last: int) -> None:
        for loop, values, at in calls:
            loop(first, last, total, values, at, books.data_ptr(), vectors)

    share(vectors, rows * columns, work)
    return total


def _scalar(x: int, spec: ScalarSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> np.ndarray:
    from vqcompress.kernels.cpu_scalar_loops import scalar_row

    codes, zeros, scales, bits, group_size = cpu_numba.scalar_arguments(spec, tensors)
    parts = -(-rows // SCALAR_PART)
    total = np.zeros(SCALAR_PART * parts, np.float32)

    def work(first: int, last: int) -> None:
        scalar_row(bits)(first, last, total, x, columns, codes, zeros, scales, group_size)

    share(parts, rows * columns, work)
    return total


_SUMS: dict[type, Callable[..., np.ndarray]] = {
    TrellisSpec: _trellis,
    AdditiveSpec: _additive,
    ScalarSpec: _scalar,
}
