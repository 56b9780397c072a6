"""Triton device functions for the trellis format: eight neighbouring weights of a column at a time.

Eight weights of rate ``k`` take exactly ``k`` bytes, so one lane reads ``k`` bytes and the two before them (a state reaches back
less than 16 bits), shifts its eight states out of one number and looks them up. Before a column's first group lie, the stream
being circular, the column's last bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def trellis_states(
    column,
    group,
    inside,
    rows,
    RATE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
):
    """States ``[lanes, 8]`` of rows ``8 * group …`` of the columns that begin at ``column`` (pointers to bytes, ``[lanes]``)."""
    length = (rows * RATE + 7) >> 3
    own = group * RATE
    before = tl.where(group == 0, length, own)
    reaches = inside & (before > 1)
    older = tl.load(column + before - 2, mask=reaches, other=0).to(tl.uint32)
    newer = tl.load(column + before - 1, mask=inside, other=0).to(tl.uint32)
    word = (older << 8) | newer
    if not WHOLE_GROUPS:  # the circle closes inside a byte
        pad = tl.where(group == 0, length * 8 - rows * RATE, 0)
        oldest = tl.load(column + before - 3, mask=inside & (pad > 0), other=0).to(tl.uint32)
        word = (((oldest << 16) | word) >> pad.to(tl.uint32)) & 0xFFFF
    if RATE == 1:  # before the second group lies one byte, and before that the circle's last bits again
        second = inside & (group == 1)
        older = tl.load(column + length - 2, mask=second, other=0).to(tl.uint32)
        newer = tl.load(column + length - 1, mask=second, other=0).to(tl.uint32)
        last = ((older << 8) | newer) >> (length * 8 - rows).to(tl.uint32)
        word = tl.where(group == 1, ((last & 0xFF) << 8) | (word & 0xFF), word)
    if RATE > 2:  # 16 bits and those of eight weights
        word = word.to(tl.uint64)
    first = word
    for index in tl.static_range(RATE):
        there = inside
        if not WHOLE_GROUPS:
            there = inside & (own + index < length)
        word = (word << 8) | tl.load(column + own + index, mask=there, other=0).to(word.dtype)
        if index == 0:
            first = word
    place = tl.arange(0, 8)[None, :]
    states = word[:, None] >> ((7 - place) * RATE).to(word.dtype)
    if RATE > 6:  # the first state has left the top of the word
        states = tl.where(place == 0, (first >> (8 - RATE))[:, None], states)
    return states.to(tl.int32) & ((1 << STATE_BITS) - 1)


@triton.jit
def look_up(
    table,
    states,
    LANES: tl.constexpr,
    STATE_BITS: tl.constexpr,
    IN_SHARED: tl.constexpr,
):
    """Values ``[lanes, 8]`` of ``states`` in ``table``, in its dtype.

    Through shared memory lanes that read different values rarely wait for each other, but the table must be brought there first
    and fit; through the L1 cache it need not.
    """
    if IN_SHARED:
        source = tl.load(table + tl.arange(0, 1 << STATE_BITS))
        values = tl.reshape(tl.gather(source, tl.reshape(states, (LANES * 8,)), 0), (LANES, 8))
    else:
        values = tl.load(table + states)
    return values
