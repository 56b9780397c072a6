"""Triton device functions for the additive format: one vector of neighbouring weights of a column a lane."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_code(column, index, inside, room, CODE_BITS: tl.constexpr):
    """Number ``index`` of ``CODE_BITS`` bits of the streams at ``column`` (pointers, ``[lanes]``) of ``room`` bytes each."""
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
    books,
    RATE: tl.constexpr,
    CODE_BITS: tl.constexpr,
    DIMENSION: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
):
    """Unscaled values ``[lanes, WIDTH]`` (float32) of vectors ``vector`` of columns; ``WIDTH`` is ``DIMENSION`` or the power of
    two above it."""
    place = tl.arange(0, WIDTH)[None, :]
    values = tl.zeros((LANES, WIDTH), dtype=tl.float32)
    for book in tl.static_range(RATE):
        code = read_code(column, vector * RATE + book, inside, room, CODE_BITS)
        word = books + ((book << CODE_BITS) + code)[:, None] * DIMENSION + place
        values += tl.load(word, mask=inside[:, None] & (place < DIMENSION), other=0.0).to(tl.float32)
    return values
