"""Triton kernels for the additive format: one vector of neighbouring weights of a column a lane.

Programs that decode are as in `vqcompress.kernels.triton.trellis`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vqcompress.formats import AdditiveSpec
from vqcompress.kernels.column_order import column_order
from vqcompress.kernels.triton.device import DECODE_WARPS, LANES, OPTIONS, decode_programs
from vqcompress.kernels.triton.operations import Launch, Operations


def _constants(spec: AdditiveSpec) -> dict[str, Any]:
    return {
        "CODE_BITS": spec.code_bits,
        "DIMENSION": spec.dimension,
        "MIN_RATE": spec.rate_range.start,
        "RATES": len(spec.rate_range),
    }


def decode(out: Tensor, codes: Tensor, spec: AdditiveSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``out [columns, outputs]``."""
    columns, outputs = out.shape
    order = column_order(spec, columns, tensors)
    width = 1 << (spec.dimension - 1).bit_length()
    lanes = max(1, LANES * 8 // width)
    grid = (decode_programs(columns, spec.vectors(outputs), len(order.ends), lanes),)
    decode_additive[grid](
        out,
        codes,
        tensors["scale"].detach(),
        order.columns,
        order.ends,
        tensors["codebooks"].detach(),
        outputs,
        SCALE_STRIDE=int(spec.row_scales),
        WIDTH=width,
        LANES=lanes,
        **_constants(spec),
        num_warps=DECODE_WARPS,
        **OPTIONS,
    )


def product(spec: AdditiveSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> Launch:
    """What to launch for partial sums."""
    order = column_order(spec, columns, tensors)
    arguments = (order.columns, order.ends, tensors["codebooks"].detach(), outputs, columns)
    return Launch(multiply_additive, arguments, _constants(spec))


OPERATIONS = Operations(decode, product, lambda spec: spec.dimension)


@triton.jit
def read_code(column, index, inside, room, CODE_BITS: tl.constexpr):
    """Number ``index`` of ``CODE_BITS`` bits of the streams, ``room`` bytes each, at ``column [lanes]``."""
    if CODE_BITS == 8:
        code = tl.load(column + index, mask=inside, other=0).to(tl.int32)
    else:
        bit = index * CODE_BITS
        at = bit >> 3
        code = tl.load(column + at, mask=inside, other=0).to(tl.int32) << 16
        code |= tl.load(column + at + 1, mask=inside & (at + 1 < room), other=0).to(tl.int32) << 8
        if CODE_BITS > 9:  # may begin anywhere in a byte
            code |= tl.load(column + at + 2, mask=inside & (at + 2 < room), other=0).to(tl.int32)
        code = (code >> (24 - CODE_BITS - (bit & 7))) & ((1 << CODE_BITS) - 1)
    return code


@triton.jit
def additive_values(
    column,
    vector,
    inside,
    room,
    codebooks,
    RATE: tl.constexpr,
    CODE_BITS: tl.constexpr,
    DIMENSION: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
):
    """Unscaled values ``[lanes, WIDTH]`` (float32) of the vectors ``vector`` of columns.

    ``WIDTH`` is ``DIMENSION`` or the power of two above it.
    """
    place = tl.arange(0, WIDTH)[None, :]
    values = tl.zeros((LANES, WIDTH), dtype=tl.float32)
    for codebook in tl.static_range(RATE):
        code = read_code(column, vector * RATE + codebook, inside, room, CODE_BITS)
        word = codebooks + ((codebook << CODE_BITS) + code)[:, None] * DIMENSION + place
        values += tl.load(word, mask=inside[:, None] & (place < DIMENSION), other=0.0).to(tl.float32)
    return values


@triton.jit
def decode_additive(
    out,
    codes,
    scale,
    order,
    ends,
    codebooks,
    outputs,
    SCALE_STRIDE: tl.constexpr,
    CODE_BITS: tl.constexpr,
    DIMENSION: tl.constexpr,
    WIDTH: tl.constexpr,
    MIN_RATE: tl.constexpr,
    RATES: tl.constexpr,
    LANES: tl.constexpr,
):
    """``out [columns, outputs]``, in its dtype: a program per ``LANES`` vectors of one rate, in stored order."""
    vectors = (outputs + DIMENSION - 1) // DIMENSION
    tile = tl.program_id(0)
    begin = 0
    for index in tl.static_range(RATES):
        end = tl.load(ends + index)
        room = (vectors * (MIN_RATE + index) * CODE_BITS + 7) >> 3
        tiles = ((end - begin) * vectors + LANES - 1) // LANES
        if (tile >= 0) & (tile < tiles):
            lane = tile * LANES + tl.arange(0, LANES)
            stored = lane // vectors
            vector = lane - stored * vectors
            inside = stored < end - begin
            column = tl.load(order + begin + stored, mask=inside, other=0)
            place = tl.arange(0, WIDTH)[None, :]
            output = vector[:, None] * DIMENSION + place
            wanted = inside[:, None] & (place < DIMENSION) & (output < outputs)
            values = additive_values(
                codes + stored * room,
                vector,
                inside,
                room,
                codebooks,
                MIN_RATE + index,
                CODE_BITS,
                DIMENSION,
                WIDTH,
                LANES,
            )
            factor = tl.load(scale + output * SCALE_STRIDE, mask=wanted, other=0.0).to(tl.float32)
            tl.store(out + column[:, None] * outputs + output, (values * factor).to(out.dtype.element_ty), mask=wanted)
        codes += (end - begin) * room
        tile -= tiles
        begin = end


@triton.jit
def _multiply_block(
    total,
    x,
    codes,
    order,
    codebooks,
    outputs,
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
    vectors = (outputs + DIMENSION - 1) // DIMENSION
    room = (vectors * RATE * CODE_BITS + 7) >> 3
    lane = tl.arange(0, DEPTH * GROUPS)
    vector = tl.program_id(0) * GROUPS + lane % GROUPS
    example = tl.arange(0, BATCH)[:, None]
    for first in range(left, right, DEPTH):
        stored = first + lane // GROUPS
        inside = (vector < vectors) & (stored < right)
        start = codes + stored * room
        values = additive_values(
            start, vector, inside, room, codebooks, RATE, CODE_BITS, DIMENSION, DIMENSION, DEPTH * GROUPS
        )
        weights = tl.reshape(values, (DEPTH, GROUPS * DIMENSION)).to(PRODUCT)
        place = first + tl.arange(0, DEPTH)
        column = tl.load(order + place, mask=place < right, other=0)[None, :]
        wanted = (example < batch) & (place < right)[None, :]
        inputs = tl.load(
            x + example.to(tl.int64) * batch_stride + column.to(tl.int64) * column_stride, mask=wanted, other=0.0
        )
        total = tl.dot(inputs.to(PRODUCT), weights, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["batch", "batch_stride", "column_stride"])
def multiply_additive(
    partial,
    x,
    codes,
    order,
    ends,
    codebooks,
    outputs,
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
    """``partial [splits, batch, outputs]`` (float32): ``x [batch, columns]`` times unscaled values.

    A program owns ``GROUPS`` vectors of ``DIMENSION`` outputs (a power of two) and takes ``DEPTH`` stored columns at a
    time.
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
                codebooks,
                outputs,
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
        codes += (end - begin) * ((((outputs + DIMENSION - 1) // DIMENSION) * (MIN_RATE + index) * CODE_BITS + 7) >> 3)
        begin = end
    example = tl.arange(0, BATCH)[:, None]
    output = tl.program_id(0) * GROUPS * DIMENSION + tl.arange(0, GROUPS * DIMENSION)[None, :]
    at = (tl.program_id(1) * batch + example) * outputs + output
    tl.store(partial + at, total, mask=(example < batch) & (output < outputs))
