"""Triton kernel: trellis codes to a dense ``Wᵀ``, limited by memory.

Programs take lanes of eight weights in the order in which they are stored, so that codes are read once and in sequence; every
program stays within one rate, a constant of its code, and finds its place from the ends of the rates alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqcompress.kernels.triton.trellis import look_up, trellis_states


@triton.jit
def _decode_block(
    out,
    codes,
    scale,
    order,
    table,
    rows,
    lane,
    count,
    SCALE_STRIDE: tl.constexpr,
    RATE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    IN_SHARED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Groups ``lane`` of a block of ``count`` columns of one rate."""
    groups = (rows + 7) // 8
    stored = lane // groups
    group = lane - stored * groups
    inside = stored < count
    column = tl.load(order + stored, mask=inside, other=0)
    row = group[:, None] * 8 + tl.arange(0, 8)[None, :]
    wanted = inside[:, None] & (row < rows)
    if RATE == 0:
        values = tl.zeros((LANES, 8), dtype=tl.float32)
    else:
        start = codes + stored * ((rows * RATE + 7) >> 3)
        states = trellis_states(start, group, inside, rows, RATE, STATE_BITS, WHOLE_GROUPS)
        values = look_up(table, states, LANES, STATE_BITS, IN_SHARED).to(tl.float32)
    gain = tl.load(scale + row * SCALE_STRIDE, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + column[:, None] * rows + row, (values * gain).to(out.dtype.element_ty), mask=wanted)


@triton.jit
def decode_trellis(
    out,
    codes,
    scale,
    order,
    ends,
    tables,
    rows,
    SCALE_STRIDE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    MIN_RATE: tl.constexpr,
    RATES: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    IN_SHARED: tl.constexpr,
    LANES: tl.constexpr,
):
    """``out [columns, rows]``, in its dtype: a program per ``LANES`` groups of eight weights of one rate, in stored order."""
    tile = tl.program_id(0)
    begin = 0
    for index in tl.static_range(RATES):
        end = tl.load(ends + index)
        tiles = ((end - begin) * ((rows + 7) // 8) + LANES - 1) // LANES
        if (tile >= 0) & (tile < tiles):
            lane = tile * LANES + tl.arange(0, LANES)
            _decode_block(
                out,
                codes,
                scale,
                order + begin,
                tables + (index << STATE_BITS),
                rows,
                lane,
                end - begin,
                SCALE_STRIDE,
                MIN_RATE + index,
                STATE_BITS,
                WHOLE_GROUPS,
                IN_SHARED,
                LANES,
            )
        codes += (end - begin) * ((rows * (MIN_RATE + index) + 7) >> 3)
        tile -= tiles
        begin = end
