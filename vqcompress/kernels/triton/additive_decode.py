"""Triton kernel: additive codes to a dense ``Wᵀ``; programs as in `vqcompress.kernels.triton.trellis_decode`."""

from __future__ import annotations

import triton
import triton.language as tl

from vqcompress.kernels.triton.additive import additive_values


@triton.jit
def decode_additive(
    out,
    codes,
    scale,
    order,
    ends,
    books,
    rows,
    SCALE_STRIDE: tl.constexpr,
    CODE_BITS: tl.constexpr,
    DIMENSION: tl.constexpr,
    WIDTH: tl.constexpr,
    MIN_RATE: tl.constexpr,
    RATES: tl.constexpr,
    LANES: tl.constexpr,
):
    """``out [columns, rows]``, in its dtype: a program per ``LANES`` vectors of one rate, in stored order."""
    vectors = (rows + DIMENSION - 1) // DIMENSION
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
            row = vector[:, None] * DIMENSION + place
            wanted = inside[:, None] & (place < DIMENSION) & (row < rows)
            values = additive_values(
                codes + stored * room, vector, inside, room, books, MIN_RATE + index, CODE_BITS, DIMENSION, WIDTH, LANES
            )
            gain = tl.load(scale + row * SCALE_STRIDE, mask=wanted, other=0.0).to(tl.float32)
            tl.store(out + column[:, None] * rows + row, (values * gain).to(out.dtype.element_ty), mask=wanted)
        codes += (end - begin) * room
        tile -= tiles
        begin = end
