"""Trellis columns to values, into a product, or to gradients; compiled for one state size and rate.

Rates are in half bits here: a column of rate ``r`` ends its weight ``t`` with bit ``(t + 1) * r >> 1``. Where ``r`` is
odd, weights add ``k`` and ``k + 1`` bits in turn, and their two tables lie one after the other.

Decoding takes sixteen weights at a time. The first sixteen need the end of the circular stream before them, and the
last few may end where memory does: both go through a small buffer that holds their bytes as if they lay in sequence.

A product takes eight outputs at a time, their sums in registers, along a block of columns. Every weight is one look-up
whose value goes straight into a multiplication; nothing else of it is ever written. Eight weights of ``k`` bits are
``k`` whole bytes, and with the two bytes before them at most ten, so one load (two above 6 bits) and constant shifts
give all their states. At half-integer rates every other eight weights begin in the middle of a byte: a shift by four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from vqcompress.formats import TrellisSpec
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.kernels.cpu.arguments import (
    block_arguments,
    byte_array,
    float_array,
    float_codebooks,
    gradient_tensor,
    output_scale,
    rates_and_starts,
    stored_order,
)
from vqcompress.kernels.cpu.loops import (
    numbers,
    raw_pointer,
    read_bits,
    run_blocks,
    shared_loop,
    wrapped_window,
)
from vqcompress.kernels.cpu.operations import Blocks, Operations
from vqcompress.kernels.cpu.threads import parallel_for
from vqcompress.kernels.cpu.vectors import (
    byte_at,
    fetch_ahead,
    float_at,
    fused,
    load,
    pointer,
    put_float,
    store,
    times,
    word_at,
)
from vqcompress.kernels.cpu.windows import LANES, look_up, second_table, window_bytes
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.machine_code import compiled

EDGE = 34  # bytes of the small buffer: more than is ever loaded at once
DECODE_NUMBERS = 11  # of each rate's loop, its address included
OUTPUTS = 8  # that a product takes at a time
BLOCK = 32  # columns whose inputs, and the lines of whose codes, stay in the first cache beside the table
LINE = 64  # bytes of a cache line
FIRST_WORD = 48  # bits of the group's own in the word that starts two bytes before it, four less after half a byte


def decode(values: Tensor, spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``values [columns, outputs]``."""
    columns, outputs = values.shape
    plan, scale = _decode_plan(spec, tensors, outputs, columns), _padded_scale(tensors["scale"], outputs)
    if plan.empty is not None:
        values[plan.empty] = 0 * scale[:outputs]
    out, codes, factors = values.data_ptr(), tensors["weight"].data_ptr(), scale.data_ptr()
    blocks: list[int] = []
    for loop, length, starts, rates, table, stored in plan.blocks:
        blocks += (loop, out, columns, outputs, codes, length, starts, rates, table, factors, stored)
    parallel_for(run_blocks, columns, values.numel(), len(plan.blocks), DECODE_NUMBERS, *blocks)


@dataclass(frozen=True)
class _DecodePlan:
    """What is the same in every decoding of a weight.

    ``blocks``: for each rate the loop, bytes of codes, the addresses of starts, rates and value table, and the rate.
    ``empty`` says which columns have no bits, if there are any. ``held`` is what lies at the addresses.
    """

    blocks: tuple[tuple[int, int, int, int, int, int], ...]
    empty: Tensor | None
    held: tuple[Any, ...]


_PLANS: TensorCache[_DecodePlan] = TensorCache()
_SCALES: TensorCache[Tensor] = TensorCache()


def _decode_plan(spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> _DecodePlan:
    """Made once for a weight, and again when learned tables or rates change."""
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    changing = tensors["weight"] if spec.codebook is None else tensors["codebooks"]
    # The address of `rates` stands for them: the plan holds them.
    return _PLANS(changing, (spec, rates.ctypes.data), lambda: _make_plan(spec, tensors, outputs, rates, starts))


def _make_plan(
    spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, rates: np.ndarray, starts: np.ndarray
) -> _DecodePlan:
    tables, length = _all_tables(spec, tensors), tensors["weight"].numel()
    blocks, owned, empty = [], [], np.zeros(len(rates), bool)
    for rate in np.unique(rates).tolist():
        if spec.column_bits(outputs, rate) == 0:
            empty |= rates == rate
            continue
        halves = spec.halves(rate)
        own = tables[halves // 2 : (halves + 3) // 2].ravel()
        if halves % 2 and not set(spec.codebook_rates) & {halves // 2, halves // 2 + 1}:
            own = _formula_pair(spec.state_bits, spec.tail, halves // 2)
        owned.append(own)
        loop = _decoder(spec.state_bits, halves, own.itemsize).address
        blocks.append((loop, length, starts.ctypes.data, rates.ctypes.data, own.ctypes.data, rate))
    return _DecodePlan(tuple(blocks), torch.from_numpy(empty) if empty.any() else None, (rates, starts, owned))


def _padded_scale(scale: Tensor, outputs: int) -> Tensor:
    """A scale for each output, float32, zeros up to a multiple of `LANES`."""

    def make() -> Tensor:
        return torch.nn.functional.pad(scale.detach().float().expand(outputs), (0, -outputs % LANES))

    return _SCALES(scale, (scale.dtype, outputs), make)


def product_blocks(
    x: int, total: int, spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int
) -> Blocks:
    """The loops of a product, one for each rate."""
    stored, codes = stored_order(spec, tensors, outputs, columns), tensors["weight"]
    begin, values = codes.data_ptr(), stored.inputs(x)
    end, tables = begin + codes.numel(), [_table(spec, spec.halves(block.rate), tensors) for block in stored.blocks]
    blocks = [
        block_arguments(
            _product(spec.state_bits, spec.halves(block.rate)),
            total,
            values.data_ptr() + 4 * block.first,
            block.last - block.first,
            begin + block.start,
            end,
            table.data_ptr(),
            outputs,
        )
        for block, table in zip(stored.blocks, tables, strict=True)
    ]
    return blocks, (values, tables)


def parameter_gradients(spec: TrellisSpec, tensors: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Gradients of ``scale`` and of learned tables; ``grad [columns, outputs]``."""
    columns, outputs = grad.shape
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    tables, scale = _all_tables(spec, tensors), output_scale(tensors["scale"], outputs)
    grad_tables, grad_scale = np.zeros(tables.shape), np.zeros(outputs)
    codes = byte_array(tensors["weight"])
    halves = rates * spec.halves(1)
    _add_gradients(grad.numpy(), codes, starts, halves, tables, spec.state_bits, scale, grad_tables, grad_scale)
    found = {"scale": gradient_tensor(grad_scale if spec.row_scales else grad_scale.sum(keepdims=True))}
    if spec.codebook is not None:
        found["codebooks"] = gradient_tensor(grad_tables[np.array(spec.codebook_rates, dtype=int)])
    return found


OPERATIONS = Operations(decode, lambda spec: OUTPUTS, product_blocks, parameter_gradients)


def _all_tables(spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """Row ``k`` is the table of weights with ``k`` new bits, learned or the formula's, float32 ``[max rate + 1,
    2**state_bits]``."""
    tables = _formula_table(spec.state_bits, spec.tail).numpy()
    if spec.codebook is None:
        return tables
    tables = tables.copy()
    tables[np.array(spec.codebook_rates)] = float_array(tensors["codebooks"])
    return tables


def _table(spec: TrellisSpec, halves: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The value table of one rate, or its two, learned or the formula's, float32 ``[1 or 2, 2**state_bits]``."""
    needed = range(halves // 2, (halves + 3) // 2)
    if not set(needed) & set(spec.codebook_rates):
        return _formula_table(spec.state_bits, spec.tail)[needed.start : needed.stop]
    if halves % 2 == 0:
        return float_codebooks(tensors)[spec.codebook_rates.index(needed.start)]
    return torch.from_numpy(_all_tables(spec, tensors)[needed.start : needed.stop])


@lru_cache(maxsize=64)
def _formula_pair(state_bits: int, tail: float, less: int) -> np.ndarray:
    """The two tables of a half-integer rate as they are, float16 ``[2 * 2**state_bits + 1]``, the last never used.

    In float32 they would fill the first cache.
    """
    tables = [value_table(state_bits, bits, tail) for bits in (less, less + 1)]
    return torch.cat([*tables, torch.zeros(1, dtype=torch.float16)]).numpy()


@lru_cache(maxsize=32)
def _formula_table(state_bits: int, tail: float) -> Tensor:
    return torch.stack([value_table(state_bits, bits, tail) for bits in range(max_rate(state_bits) + 1)]).float()


@compiled(inline="always")
def _fill_edge(edge, stream, rate, outputs, group):
    """Bytes of sixteen weights and the two before them; zeros beyond the column."""
    bits, first = outputs * rate >> 1, rate * group - 2
    for place in range(rate + 2):
        at = first + place
        edge[place] = stream[at] if at >= 0 and at * 8 < bits else 0
    if first < 0:
        last = _last_sixteen(stream.ctypes.data, bits)
        edge[-first - 1] = last & np.uint64(255)
        if first == -2:
            edge[0] = last >> np.uint64(8)


@compiled(inline="always")
def _last_sixteen(address, bits):
    """The last sixteen bits of the circle of ``bits`` bits at ``address``."""
    if bits < 24:
        return _wrapped_sixteen(address, bits)
    at = address + ((bits - 1) >> 3)
    three = (byte_at(at - 2) << 16) | (byte_at(at - 1) << 8) | byte_at(at)
    return np.uint64((three >> (7 - ((bits - 1) & 7))) & 0xFFFF)


@compiled(inline="always")
def _wrapped_sixteen(address, bits):
    """The same for a circle that may be shorter than that."""
    value = np.int64(0)
    for place in range(-16, 0):
        at = place % bits
        value = (value << 1) | ((byte_at(address + (at >> 3)) >> (7 - (at & 7))) & 1)
    return np.uint64(value)


@lru_cache(maxsize=64)
def _decoder(state_bits: int, rate: int, size: int) -> Any:
    """The loop that fills those of the columns ``first … last`` that have this rate.

    Its arguments: ``values [columns, outputs]``, codes, starts, rates, value tables of ``size`` bytes a value, scale
    (outputs padded to sixteen), the rate as it is stored.
    """
    loaded, direct = window_bytes(rate, state_bits, 2), -(-2 // rate)  # groups before that one need the circle's end

    def decode(first, last, arguments):
        out_at, columns, outputs, codes_at, length, starts_at, rates_at, table, scale, stored = numbers(10, arguments)
        codes, values = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(out_at), (columns, outputs), np.float32),
        )
        starts, rates = (
            carray(raw_pointer(starts_at), columns, np.int64),
            carray(raw_pointer(rates_at), columns, np.int64),
        )
        edge, sixteen = np.zeros(EDGE, np.uint8), np.empty(LANES, np.float32)
        for column in range(first, last):
            if rates[column] != stored:
                continue
            start, out = starts[column], values[column]
            at, target = codes_at + start, out_at + 4 * outputs * column
            inner = max(direct, min(outputs // LANES, (length - start + 2 - loaded) // rate + 1))
            for group in range(direct, inner):
                found = look_up(rate, state_bits, size, at + rate * group, table)
                store(times(found, load(LANES, scale + 4 * LANES * group)), target + 4 * LANES * group)
            group = 0
            while group * LANES < outputs:
                _fill_edge(edge, codes[start:], rate, outputs, group)
                found = look_up(rate, state_bits, size, edge.ctypes.data + 2, table)
                store(times(found, load(LANES, scale + 4 * LANES * group)), sixteen.ctypes.data)
                for output in range(min(LANES, outputs - LANES * group)):
                    out[LANES * group + output] = sixteen[output]
                group = inner if group == direct - 1 else group + 1

    return shared_loop(decode)


@intrinsic(prefer_literal=True)
def _add_products(typing_context, rate, length, word, later, table, factor, totals):
    """``totals [8]`` plus ``factor`` times the values of a group's eight weights.

    ``word`` has the sixteen bits before the group and its first 44 or 48, ``later`` those from its 24th or 32nd on.
    """

    def generate(context, builder, signature, arguments):
        step, bits = signature.args[0].literal_value, signature.args[1].literal_value
        _, _, word_, later_, table_, factor_, totals_ = arguments
        base, wide = pointer(builder, table_, ir.FloatType()), ir.IntType(64)
        for lane in range(OUTPUTS):
            end = (lane + 1) * step >> 1
            source, shift = (
                (word_, FIRST_WORD - end) if end <= _first_word(step) else (later_, 64 + 8 * _later_byte(step) - end)
            )
            state = builder.and_(builder.lshr(source, wide(shift)), wide((1 << bits) - 1))
            own = builder.gep(base, [wide(second_table(lane, step, bits))], source_etype=ir.FloatType())
            value = builder.load(builder.gep(own, [state], inbounds=True, source_etype=ir.FloatType()), align=4)
            total = fused(builder, value, factor_, builder.extract_value(totals_, lane))
            totals_ = builder.insert_value(totals_, total, lane)
        return totals_

    words = (types.uint64, types.uint64)
    return totals(rate, length, *words, types.intp, types.float32, totals), generate


@compiled()
def _bytes(address, end):
    """The eight bytes at ``address``; zeros from ``end`` on."""
    if address + 8 <= end:
        return word_at(address)
    word = np.uint64(0)
    for place in range(8):
        byte = byte_at(address + place) if address + place < end else 0
        word = (word << np.uint64(8)) | np.uint64(byte)
    return word


@compiled()
def _wrapped_word(column, before, bits, end):
    """The word of a group with ``before`` bits, fewer than 16, before it in the ``column`` (address): its circle's end,
    these bits, then the group."""
    first = _bytes(column, end)
    lead = (_last_sixteen(column, bits) << np.uint64(before)) | (first >> np.uint64(63 - before) >> np.uint64(1))
    own = _bytes(column + (before >> 3), end) << np.uint64(before & 7)
    return (lead << np.uint64(48)) | (own >> np.uint64(16))


def _first_word(rate: int) -> int:
    """Bits of its own that a group always has in its first word."""
    return FIRST_WORD - 4 * (rate & 1)


def _later_byte(rate: int) -> int:
    """Where in the group's bytes the second word begins: the first weight that the first lacks needs 15 bits before."""
    return 4 - (rate & 1)


@lru_cache(maxsize=64)
def _product(state_bits: int, rate: int) -> Any:
    """The loop that adds the product of one sample with the unscaled values of ``n`` columns of this rate.

    It goes over groups of eight outputs, from ``first`` to ``last``. Its arguments: ``total [8 * groups]``, inputs
    ``[n]``, ``n``, codes of these columns, end of memory, value table, outputs.
    """
    reach = 12 if rate * OUTPUTS // 2 > _first_word(rate) else 8  # bytes read from where a group begins
    later_byte = _later_byte(rate)

    def multiply(first, last, arguments):
        total, x, n, codes, end, values, outputs = numbers(7, arguments)
        width, zero = ((outputs * rate >> 1) + 7) >> 3, np.float32(0)
        lines = (last - first) * rate // (2 * LINE) + 1  # of a column
        together = BLOCK * lines // (last - first) + 1
        for begin in range(0, n, BLOCK):
            stop, ahead, left = min(begin + BLOCK, n), codes + (begin + BLOCK) * width + (first * rate >> 1), lines
            for group in range(first, last):
                sums = (zero, zero, zero, zero, zero, zero, zero, zero)
                at = codes + begin * width + (group * rate >> 1)
                within = np.uint64(4 * (group * rate & 1))  # of a byte
                inside = max(begin, min(stop, begin + (end - reach - at) // width + 1))
                # The next block's bytes of these groups, in step: as many streams as columns are more than a
                # processor follows.
                for _ in range(together):
                    fetch_ahead(ahead)
                    ahead, left = ahead + LINE, left - 1
                    if left == 0:
                        ahead, left = ahead + width - lines * LINE, lines
                wraps = 4 * group * rate < 16
                if wraps:
                    inside = begin
                for column in range(begin, inside):
                    word = word_at(at - 2) << within
                    later = word_at(at + later_byte) << within if reach > 8 else word
                    sums = _add_products(rate, state_bits, word, later, values, float_at(x + 4 * column), sums)
                    at += width
                for column in range(inside, stop):
                    if wraps:
                        word = _wrapped_word(at - (group * rate >> 1), 4 * group * rate, outputs * rate >> 1, end)
                    else:
                        word = _bytes(at - 2, end) << within
                    later = _bytes(at + later_byte, end) << within
                    sums = _add_products(rate, state_bits, word, later, values, float_at(x + 4 * column), sums)
                    at += width
                target = total + 4 * OUTPUTS * group
                for place in range(OUTPUTS):
                    put_float(float_at(target + 4 * place) + sums[place], target + 4 * place)

    return shared_loop(multiply)


@compiled(inline="always")
def _state(stream, output, rate, outputs, state_bits):
    """The state of ``output`` in a circular stream: three bytes where the window lies inside of it, else bit by bit."""
    bits, stop = outputs * rate >> 1, (output + 1) * rate >> 1
    start = stop - state_bits
    if start < 0:
        return wrapped_window(stream, stop, bits, state_bits)
    if start + 24 > bits:
        return read_bits(stream, start, state_bits)
    at = start >> 3
    three = (np.int64(stream[at]) << 16) | (np.int64(stream[at + 1]) << 8) | np.int64(stream[at + 2])
    return (three >> (24 - state_bits - (start & 7))) & ((np.int64(1) << state_bits) - 1)


@compiled(nogil=True)
def _add_gradients(grad, codes, starts, rates, tables, state_bits, scale, grad_tables, grad_scale):
    """Add to ``grad_tables [max rate + 1, 2**state_bits]`` and ``grad_scale [outputs]``."""
    outputs = grad.shape[1]
    for column in range(len(rates)):
        rate = rates[column]
        if outputs * rate < 2:
            continue
        stream = codes[starts[column] :]
        for output in range(outputs):
            state = _state(stream, output, rate, outputs, state_bits)
            new_bits = ((output + 1) * rate >> 1) - (output * rate >> 1)
            grad_tables[new_bits, state] += grad[column, output] * scale[output]
            grad_scale[output] += grad[column, output] * tables[new_bits, state]
