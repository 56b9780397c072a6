"""Triton kernels for the trellis format: eight neighbouring weights of a column at a time.

Rates are in half bits here. Eight weights of rate ``r`` take ``r`` half bytes, so one lane reads the bytes that these
are in and the two before them (a state reaches back less than 16 bits), shifts its eight states out of one number and
looks them up; where ``r`` is odd, weights have two tables in turn. Before a column's first groups lie, the stream being
circular, the column's last bits.

Decoding is limited by memory: programs take lanes of eight weights in the order in which they are stored, so that codes
are read once and in sequence; every program stays within one rate, a constant of its code, and finds its place from the
ends of the rates alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqcompress.formats import TrellisSpec
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels.column_order import column_order
from vqcompress.kernels.tensor_cache import TensorCache, refuse_capture
from vqcompress.kernels.triton.device import DECODE_WARPS, LANES, OPTIONS, STATE_BITS_IN_SHARED, decode_programs
from vqcompress.kernels.triton.operations import Launch, Operations

_LEARNED: TensorCache[Tensor] = TensorCache()


def value_tables(spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> Tensor:
    """Values of weights that add as many bits as column rates of ``spec`` ask for: row ``i`` for ``i`` bits more than
    the least, ``[numbers of bits, 2**state_bits]`` in float16.

    Kept for later calls; treat it as read-only.
    """
    device, halves = tensors["weight"].device, [spec.halves(rate) for rate in spec.rate_range]
    bits = tuple(range(halves[0] // 2, (halves[-1] + 1) // 2 + 1))
    formula = _formula(spec.state_bits, spec.tail, bits, device)
    if not set(bits) & set(spec.codebook_rates):
        return formula
    codebooks = tensors["codebooks"]
    return _LEARNED(codebooks, spec, lambda: _with_learned(spec, formula, bits, codebooks))


@cache  # a few hundred at most, of 8 to 900 kB: with a limit, models of many tails and rates would make them in calls
def _formula(state_bits: int, tail: float, bits: tuple[int, ...], device: torch.device) -> Tensor:
    refuse_capture(device)
    # Outside inference mode, or the first caller's mode would stick to a table that all share.
    with torch.inference_mode(False):
        return torch.stack([value_table(state_bits, number, tail) for number in bits]).to(device)


def _with_learned(spec: TrellisSpec, formula: Tensor, bits: tuple[int, ...], codebooks: Tensor) -> Tensor:
    with torch.no_grad():
        tables = formula.to(codebooks.dtype).clone()
        for index, number in enumerate(bits):
            if number in spec.codebook_rates:
                tables[index] = codebooks[spec.codebook_rates.index(number)]
        return tables


def _constants(spec: TrellisSpec, outputs: int) -> dict[str, Any]:
    return {
        "STATE_BITS": spec.state_bits,
        "MIN_RATE": spec.halves(spec.rate_range.start),
        "UNIT": spec.halves(1),
        "RATES": len(spec.rate_range),
        "WHOLE_GROUPS": outputs % 8 == 0,
        "IN_SHARED": spec.state_bits <= STATE_BITS_IN_SHARED,
    }


def decode(out: Tensor, codes: Tensor, spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``out [columns, outputs]``."""
    columns, outputs = out.shape
    order = column_order(spec, columns, tensors)
    grid = (decode_programs(columns, -(-outputs // 8), len(order.ends)),)
    decode_trellis[grid](
        out,
        codes,
        tensors["scale"].detach(),
        order.columns,
        order.ends,
        value_tables(spec, tensors),
        outputs,
        SCALE_STRIDE=int(spec.row_scales),
        LANES=LANES,
        **_constants(spec, outputs),
        num_warps=DECODE_WARPS,
        **OPTIONS,
    )


def product(spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> Launch:
    """What to launch for partial sums."""
    order = column_order(spec, columns, tensors)
    arguments = (order.columns, order.ends, value_tables(spec, tensors), outputs, columns)
    return Launch(multiply_trellis, arguments, _constants(spec, outputs))


OPERATIONS = Operations(decode, product, lambda spec: 8)


@triton.jit
def trellis_states(
    column,
    group,
    inside,
    outputs,
    RATE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
):
    """States ``[lanes, 8]`` of outputs ``8 * group …`` of the columns at ``column [lanes]`` (pointers)."""
    bits = outputs * RATE >> 1
    length = (bits + 7) >> 3
    own = group * RATE >> 1  # byte
    ALIGNED: tl.constexpr = RATE % 2 == 0
    before = tl.where(group == 0, length, own)
    reaches = inside & (before > 1)
    older = tl.load(column + before - 2, mask=reaches, other=0).to(tl.uint32)
    newer = tl.load(column + before - 1, mask=inside & (before > 0), other=0).to(tl.uint32)
    word = (older << 8) | newer
    if not WHOLE_GROUPS or not ALIGNED:  # the circle closes inside a byte
        pad = tl.where(group == 0, length * 8 - bits, 0)
        oldest = tl.load(column + before - 3, mask=inside & (pad > 0), other=0).to(tl.uint32)
        word = (((oldest << 16) | word) >> pad.to(tl.uint32)) & 0xFFFF
    if RATE < 4:  # before the second group (the second to fourth at half a bit) lie few bits, then the circle's last
        near = inside & (group > 0) & (group * RATE < 4)
        oldest = tl.load(column + tl.maximum(length - 3, 0), mask=near, other=0).to(tl.uint32)
        older = tl.load(column + length - 2, mask=near, other=0).to(tl.uint32)
        newer = tl.load(column + length - 1, mask=near, other=0).to(tl.uint32)
        last = ((oldest << 16) | (older << 8) | newer) >> (length * 8 - bits).to(tl.uint32)
        whole = (own * 8).to(tl.uint32)  # bits in whole bytes before the group's own; half a byte more comes below
        word = tl.where(near, ((last << whole) | (word & ((1 << whole) - 1))) & 0xFFFF, word)
    if RATE > 4:  # 16 bits and those of eight weights, and half a byte
        word = word.to(tl.uint64)
    BYTES: tl.constexpr = (RATE + 1) // 2
    first = word
    for index in tl.static_range(BYTES):
        there = inside
        if not WHOLE_GROUPS or not ALIGNED:
            there = inside & (own + index < length)
        word = (word << 8) | tl.load(column + own + index, mask=there, other=0).to(word.dtype)
        if index == 2:
            first = word  # with 24 bits from the group's first byte on
    place = tl.arange(0, 8)[None, :]
    end = ((place + 1) * RATE) >> 1
    if not ALIGNED:  # every other group begins and ends inside a byte
        end += tl.where(group % 2 == 0, 0, 4)[:, None]
    states = word[:, None] >> (8 * BYTES - end).to(word.dtype)
    if RATE > 12:  # the first two states have left the top of the word, or may have
        early = first[:, None] >> tl.where(place < 2, 24 - end, 0).to(word.dtype)
        states = tl.where(place < 2, early, states)
    return states.to(tl.int32) & ((1 << STATE_BITS) - 1)


@triton.jit
def look_up(
    table,
    states,
    LANES: tl.constexpr,
    RATE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    IN_SHARED: tl.constexpr,
):
    """Values ``[lanes, 8]`` of ``states`` in ``table``, in its dtype; at odd rates every other weight in the one after.

    Through shared memory lanes that read different values rarely wait for each other, but the table must be brought
    there first and fit; through the L1 cache it need not.
    """
    TABLES: tl.constexpr = 1 + RATE % 2
    if TABLES == 2:
        states += (tl.arange(0, 8) % 2 << STATE_BITS)[None, :]
    if IN_SHARED:
        source = tl.load(table + tl.arange(0, TABLES << STATE_BITS))
        values = tl.reshape(tl.gather(source, tl.reshape(states, (LANES * 8,)), 0), (LANES, 8))
    else:
        values = tl.load(table + states)
    return values


@triton.jit
def _decode_block(
    out,
    codes,
    scale,
    order,
    table,
    outputs,
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
    groups = (outputs + 7) // 8
    stored = lane // groups
    group = lane - stored * groups
    inside = stored < count
    column = tl.load(order + stored, mask=inside, other=0)
    output = group[:, None] * 8 + tl.arange(0, 8)[None, :]
    wanted = inside[:, None] & (output < outputs)
    if RATE == 0:
        values = tl.zeros((LANES, 8), dtype=tl.float32)
    else:
        start = codes + stored * (((outputs * RATE >> 1) + 7) >> 3)
        states = trellis_states(start, group, inside, outputs, RATE, STATE_BITS, WHOLE_GROUPS)
        values = look_up(table, states, LANES, RATE, STATE_BITS, IN_SHARED).to(tl.float32)
    factor = tl.load(scale + output * SCALE_STRIDE, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + column[:, None] * outputs + output, (values * factor).to(out.dtype.element_ty), mask=wanted)


@triton.jit
def decode_trellis(
    out,
    codes,
    scale,
    order,
    ends,
    tables,
    outputs,
    SCALE_STRIDE: tl.constexpr,
    STATE_BITS: tl.constexpr,
    MIN_RATE: tl.constexpr,
    UNIT: tl.constexpr,
    RATES: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    IN_SHARED: tl.constexpr,
    LANES: tl.constexpr,
):
    """``out [columns, outputs]``, in its dtype: a program per ``LANES`` groups of eight weights of one rate."""
    tile = tl.program_id(0)
    begin = 0
    for index in tl.static_range(RATES):
        end = tl.load(ends + index)
        tiles = ((end - begin) * ((outputs + 7) // 8) + LANES - 1) // LANES
        if (tile >= 0) & (tile < tiles):
            lane = tile * LANES + tl.arange(0, LANES)
            _decode_block(
                out,
                codes,
                scale,
                order + begin,
                tables + ((((MIN_RATE + index * UNIT) >> 1) - (MIN_RATE >> 1)) << STATE_BITS),
                outputs,
                lane,
                end - begin,
                SCALE_STRIDE,
                MIN_RATE + index * UNIT,
                STATE_BITS,
                WHOLE_GROUPS,
                IN_SHARED,
                LANES,
            )
        codes += (end - begin) * (((outputs * (MIN_RATE + index * UNIT) >> 1) + 7) >> 3)
        tile -= tiles
        begin = end


@triton.jit
def _multiply_block(
    total,
    x,
    codes,
    order,
    table,
    outputs,
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
    size = ((outputs * RATE >> 1) + 7) >> 3
    for first in range(left, right, DEPTH):
        stored = first + lane // GROUPS
        inside = (group * 8 < outputs) & (stored < right)
        states = trellis_states(codes + stored * size, group, inside, outputs, RATE, STATE_BITS, WHOLE_GROUPS)
        values = look_up(table, states, DEPTH * GROUPS, RATE, STATE_BITS, IN_SHARED)
        weights = tl.reshape(values, (DEPTH, GROUPS * 8)).to(PRODUCT)
        place = first + tl.arange(0, DEPTH)
        column = tl.load(order + place, mask=place < right, other=0)[None, :]
        wanted = (example < batch) & (place < right)[None, :]
        inputs = tl.load(
            x + example.to(tl.int64) * batch_stride + column.to(tl.int64) * column_stride, mask=wanted, other=0.0
        )
        total = tl.dot(inputs.to(PRODUCT), weights, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["batch", "batch_stride", "column_stride"])
def multiply_trellis(
    partial,
    x,
    codes,
    order,
    ends,
    tables,
    outputs,
    columns,
    batch,
    batch_stride,
    column_stride,
    columns_per_split,
    STATE_BITS: tl.constexpr,
    MIN_RATE: tl.constexpr,
    UNIT: tl.constexpr,
    RATES: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    IN_SHARED: tl.constexpr,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """``partial [splits, batch, outputs]`` (float32): ``x [batch, columns]`` times unscaled values.

    A program owns ``8 * GROUPS`` outputs and takes ``DEPTH`` stored columns of one rate at a time.
    """
    left = tl.program_id(1) * columns_per_split
    right = tl.minimum(left + columns_per_split, columns)
    total = tl.zeros((BATCH, GROUPS * 8), dtype=tl.float32)
    begin = 0
    for index in tl.static_range(RATES):
        end = tl.load(ends + index)
        if MIN_RATE + index * UNIT > 0:  # columns of rate 0 are zero
            total = _multiply_block(
                total,
                x,
                codes,
                order + begin,
                tables + ((((MIN_RATE + index * UNIT) >> 1) - (MIN_RATE >> 1)) << STATE_BITS),
                outputs,
                batch,
                batch_stride,
                column_stride,
                tl.maximum(left, begin) - begin,
                tl.minimum(right, end) - begin,
                MIN_RATE + index * UNIT,
                STATE_BITS,
                WHOLE_GROUPS,
                IN_SHARED,
                BATCH,
                GROUPS,
                DEPTH,
                PRODUCT,
            )
        codes += (end - begin) * (((outputs * (MIN_RATE + index * UNIT) >> 1) + 7) >> 3)
        begin = end
    example = tl.arange(0, BATCH)[:, None]
    output = tl.program_id(0) * GROUPS * 8 + tl.arange(0, GROUPS * 8)[None, :]
    at = (tl.program_id(1) * batch + example) * outputs + output
    tl.store(partial + at, total, mask=(example < batch) & (output < outputs))
