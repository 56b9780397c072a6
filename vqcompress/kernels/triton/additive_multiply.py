"""Triton kernel: a few rows of inputs times an additively coded weight, reading nothing of the weight but its codes."""

from __future__ import annotations

import triton
import triton.language as tl

from vqcompress.kernels.triton.additive import additive_values


@triton.jit
def _multiply_block(
    total,
    x,
    codes,
    order,
    books,
    rows,
    batch,
    batch_stride,
    column_stride,
    left,
    right,
    RATE: tl.constexpr,
    CODE_BITS: tl.constexpr,
    DIMENSION: tl.constexpr,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """``total [BATCH, GROUPS * DIMENSION]`` plus the product with columns ``left … right`` of a block of one rate."""
    vectors = (rows + DIMENSION - 1) // DIMENSION
    room = (vectors * RATE * CODE_BITS + 7) >> 3
    lane = tl.arange(0, DEPTH * GROUPS)
    vector = tl.program_id(0) * GROUPS + lane % GROUPS
    example = tl.arange(0, BATCH)[:, None]
    for first in range(left, right, DEPTH):
        stored = first + lane // GROUPS
        inside = (vector < vectors) & (stored < right)
        start = codes + stored * room
        values = additive_values(
            start, vector, inside, room, books, RATE, CODE_BITS, DIMENSION, DIMENSION, DEPTH * GROUPS
        )
        weights = tl.reshape(values, (DEPTH, GROUPS * DIMENSION)).to(PRODUCT)
        place = first + tl.arange(0, DEPTH)
        column = tl.load(order + place, mask=place < right, other=0)[None, :]
        wanted = (example < batch) & (place < right)[None, :]
        inputs = tl.load(x + example * batch_stride + column * column_stride, mask=wanted, other=0.0)
        total = tl.dot(inputs.to(PRODUCT), weights, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["batch"])
def multiply_additive(
    partial,
    x,
    codes,
    order,
    ends,
    books,
    rows,
    columns,
    batch,
    batch_stride,
    column_stride,
    columns_per_split,
    CODE_BITS: tl.constexpr,
    DIMENSION: tl.constexpr,
    MIN_RATE: tl.constexpr,
    RATES: tl.constexpr,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """``partial [splits, batch, rows]`` (float32): ``x [batch, columns]`` times the unscaled values of a part of the columns.

    A program owns ``GROUPS`` vectors of ``DIMENSION`` outputs (a power of two) and takes ``DEPTH`` stored columns at a time.
    """
    left = tl.program_id(1) * columns_per_split
    right = tl.minimum(left + columns_per_split, columns)
    total = tl.zeros((BATCH, GROUPS * DIMENSION), dtype=tl.float32)
    begin = 0
    for index in tl.static_range(RATES):
        end = tl.load(ends + index)
        if MIN_RATE + index > 0:  # columns of rate 0 are zero
            total = _multiply_block(
                total,
                x,
                codes,
                order + begin,
                books,
                rows,
                batch,
                batch_stride,
                column_stride,
                tl.maximum(left, begin) - begin,
                tl.minimum(right, end) - begin,
                MIN_RATE + index,
                CODE_BITS,
                DIMENSION,
                BATCH,
                GROUPS,
                DEPTH,
                PRODUCT,
            )
        codes += (end - begin) * ((((rows + DIMENSION - 1) // DIMENSION) * (MIN_RATE + index) * CODE_BITS + 7) >> 3)
        begin = end
    example = tl.arange(0, BATCH)[:, None]
    row = tl.program_id(0) * GROUPS * DIMENSION + tl.arange(0, GROUPS * DIMENSION)[None, :]
    at = (tl.program_id(1) * batch + example) * rows + row
    tl.store(partial + at, total, mask=(example < batch) & (row < rows))
