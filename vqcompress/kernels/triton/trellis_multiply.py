"""Triton kernel: a few rows of inputs times a trellis-coded weight, reading nothing of the weight but its codes."""

from __future__ import annotations

import triton
import triton.language as tl

from vqcompress.kernels.triton.trellis import look_up, trellis_states


@triton.jit
def _multiply_block(
    total,
    x,
    codes,
    order,
    table,
    rows,
    batch,
    batch_stride,
    column_stride,
    left,
    right,
    RATE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    IN_SHARED: tl.constexpr,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """``total [BATCH, 8 * GROUPS]`` plus the product with columns ``left … right`` of a block of one rate."""
    lane = tl.arange(0, DEPTH * GROUPS)
    group = tl.program_id(0) * GROUPS + lane % GROUPS
    example = tl.arange(0, BATCH)[:, None]
    size = (rows * RATE + 7) >> 3
    for first in range(left, right, DEPTH):
        stored = first + lane // GROUPS
        inside = (group * 8 < rows) & (stored < right)
        states = trellis_states(codes + stored * size, group, inside, rows, RATE, STATE_BITS, WHOLE_GROUPS)
        values = look_up(table, states, DEPTH * GROUPS, STATE_BITS, IN_SHARED)
        weights = tl.reshape(values, (DEPTH, GROUPS * 8)).to(PRODUCT)
        place = first + tl.arange(0, DEPTH)
        column = tl.load(order + place, mask=place < right, other=0)[None, :]
        wanted = (example < batch) & (place < right)[None, :]
        inputs = tl.load(x + example * batch_stride + column * column_stride, mask=wanted, other=0.0)
        total = tl.dot(inputs.to(PRODUCT), weights, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["batch"])
def multiply_trellis(
    partial,
    x,
    codes,
    order,
    ends,
    tables,
    rows,
    columns,
    batch,
    batch_stride,
    column_stride,
    columns_per_split,
    STATE_BITS: tl.constexpr,
    MIN_RATE: tl.constexpr,
    RATES: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    IN_SHARED: tl.constexpr,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """``partial [splits, batch, rows]`` (float32): ``x [batch, columns]`` times the unscaled values of a part of the columns.

    A program owns ``8 * GROUPS`` outputs and takes ``DEPTH`` stored columns of one rate at a time.
    """
    left = tl.program_id(1) * columns_per_split
    right = tl.minimum(left + columns_per_split, columns)
    total = tl.zeros((BATCH, GROUPS * 8), dtype=tl.float32)
    begin = 0
    for index in tl.static_range(RATES):
        end = tl.load(ends + index)
        if MIN_RATE + index > 0:  # columns of rate 0 are zero
            total = _multiply_block(
                total,
                x,
                codes,
                order + begin,
                tables + (index << STATE_BITS),
                rows,
                batch,
                batch_stride,
                column_stride,
                tl.maximum(left, begin) - begin,
                tl.minimum(right, end) - begin,
                MIN_RATE + index,
                STATE_BITS,
                WHOLE_GROUPS,
                IN_SHARED,
                BATCH,
                GROUPS,
                DEPTH,
                PRODUCT,
            )
        codes += (end - begin) * ((rows * (MIN_RATE + index) + 7) >> 3)
        begin = end
    example = tl.arange(0, BATCH)[:, None]
    row = tl.program_id(0) * GROUPS * 8 + tl.arange(0, GROUPS * 8)[None, :]
    at = (tl.program_id(1) * batch + example) * rows + row
    tl.store(partial + at, total, mask=(example < batch) & (row < rows))
