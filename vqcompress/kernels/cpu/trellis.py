"""Trellis columns to values, into a product, or to gradients; compiled for one state size and rate.

Decoding takes sixteen weights at a time. The first sixteen need the end of the circular stream before them, and the
last few may end where memory does: both go through a small buffer that holds their bytes as if they lay in sequence.

A product takes eight outputs at a time, their sums in registers, along a block of columns. Every weight is one look-up
whose value goes straight into a multiplication; nothing else of it is ever written. Eight weights of ``k`` bits are
``k`` whole bytes, and with the two bytes before them at most ten, so one load (two above 6 bits) and constant shifts
give all their states.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    run_over_columns,
    stored_order,
)
from vqcompress.kernels.cpu.loops import (
    numbers,
    raw_pointer,
    read_bits,
    shared_loop,
    wrapped_window,
)
from vqcompress.kernels.cpu.operations import Blocks, Operations
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
from vqcompress.kernels.cpu.windows import LANES, look_up, window_bytes
from vqcompress.machine_code import compiled

EDGE = 34  # bytes of the small buffer: more than is ever loaded at once
OUTPUTS = 8  # that a product takes at a time
BLOCK = 32  # columns whose inputs, and the lines of whose codes, stay in the first cache beside the table
LINE = 64  # bytes of a cache line
FIRST_WORD = 48  # bits of the group's own in the word that starts two bytes before it


def decode(values: Tensor, spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``values [columns, outputs]``."""
    columns, outputs = values.shape
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    codes, tables = byte_array(tensors["weight"]), _all_tables(spec, tensors)
    scale = np.append(output_scale(tensors["scale"], outputs), np.zeros(-outputs % LANES, np.float32))
    for rate in np.unique(rates).tolist():
        if rate == 0:
            values[torch.from_numpy(rates == 0)] = torch.from_numpy(np.float32(0) * scale[:outputs])
        else:
            loop = _decoder(spec.state_bits, rate)
            run_over_columns(loop, values, codes, starts, rates, tables[rate - 1], scale)


def product_blocks(
    x: int, total: int, spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int
) -> Blocks:
    """The loops of a product, one for each rate."""
    stored, codes = stored_order(spec, tensors, outputs, columns), tensors["weight"]
    begin, values = codes.data_ptr(), stored.inputs(x)
    end, tables = begin + codes.numel(), [_table(spec, block.rate, tensors) for block in stored.blocks]
    blocks = [
        block_arguments(
            _product(spec.state_bits, block.rate),
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
    _add_gradients(grad.numpy(), codes, starts, rates, tables, spec.state_bits, scale, grad_tables, grad_scale)
    found = {"scale": gradient_tensor(grad_scale if spec.row_scales else grad_scale.sum(keepdims=True))}
    if spec.codebook is not None:
        found["codebooks"] = gradient_tensor(grad_tables[np.array(spec.codebook_rates, dtype=int) - 1])
    return found


OPERATIONS = Operations(decode, lambda spec: OUTPUTS, product_blocks, parameter_gradients)


def _all_tables(spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """Value ``k - 1`` is the table of rate ``k``, learned or the formula's, float32 ``[max rate, 2**state_bits]``."""
    tables = _formula_tables(spec.state_bits, spec.tail)
    if spec.codebook is None:
        return tables
    tables = tables.copy()
    tables[np.array(spec.codebook_rates) - 1] = float_array(tensors["codebooks"])
    return tables


def _table(spec: TrellisSpec, rate: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The value table of one rate, learned or the formula's, float32 ``[2**state_bits]``."""
    if rate in spec.codebook_rates:
        return float_codebooks(tensors)[spec.codebook_rates.index(rate)]
    return _formula_table(spec.state_bits, spec.tail, rate)


@lru_cache(maxsize=32)
def _formula_tables(state_bits: int, tail: float) -> np.ndarray:
    return torch.stack([_formula_table(state_bits, tail, rate) for rate in range(1, max_rate(state_bits) + 1)]).numpy()


@lru_cache(maxsize=64)
def _formula_table(state_bits: int, tail: float, rate: int) -> Tensor:
    return value_table(state_bits, rate, tail).float()


@compiled(inline="always")
def _fill_edge(edge, stream, rate, outputs, group):
    """Bytes of sixteen weights and the two before them; zeros beyond the column."""
    bits, first = outputs * rate, 2 * rate * group - 2
    for place in range(2 * rate + 2):
        at = first + place
        edge[place] = stream[at] if at >= 0 and at * 8 < bits else 0
    if group == 0:
        last = _last_sixteen(stream.ctypes.data, bits)
        edge[0], edge[1] = last >> np.uint64(8), last & np.uint64(255)


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
def _decoder(state_bits: int, rate: int) -> Any:
    """The loop that fills those of the columns ``first … last`` that have this rate.

    Its arguments: ``values [columns, outputs]``, codes, starts, rates, value table, scale (outputs padded to sixteen).
    """
    loaded = window_bytes(rate, state_bits, 2)

    def decode(first, last, arguments):
        out_at, columns, outputs, codes_at, length, starts_at, _, rates_at, _, table, _, scale, _ = numbers(
            13, arguments
        )
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
            if rates[column] != rate:
                continue
            start, out = starts[column], values[column]
            at, target = codes_at + start, out_at + 4 * outputs * column
            inner = max(1, min(outputs // LANES, (length - start + 2 - loaded) // (2 * rate) + 1))
            for group in range(1, inner):
                found = look_up(rate, state_bits, at + 2 * rate * group, table)
                store(times(found, load(LANES, scale + 4 * LANES * group)), target + 4 * LANES * group)
            group = 0
            while group * LANES < outputs:
                _fill_edge(edge, codes[start:], rate, outputs, group)
                found = look_up(rate, state_bits, edge.ctypes.data + 2, table)
                store(times(found, load(LANES, scale + 4 * LANES * group)), sixteen.ctypes.data)
                for output in range(min(LANES, outputs - LANES * group)):
                    out[LANES * group + output] = sixteen[output]
                group = inner if group == 0 else group + 1

    return shared_loop(decode)


@intrinsic(prefer_literal=True)
def _add_products(typing_context, rate, length, word, later, table, factor, totals):
    """``totals [8]`` plus ``factor`` times the values of a group's eight weights.

    ``word`` has the sixteen bits before the group and its first 48, ``later`` the 64 bits from its 32nd on.
    """

    def generate(context, builder, signature, arguments):
        step, bits = signature.args[0].literal_value, signature.args[1].literal_value
        _, _, word_, later_, table_, factor_, totals_ = arguments
        base, wide = pointer(builder, table_, ir.FloatType()), ir.IntType(64)
        for lane in range(OUTPUTS):
            end = (lane + 1) * step
            source, shift = (word_, FIRST_WORD - end) if end <= FIRST_WORD else (later_, 96 - end)
            state = builder.and_(builder.lshr(source, wide(shift)), wide((1 << bits) - 1))
            value = builder.load(builder.gep(base, [state], inbounds=True, source_etype=ir.FloatType()), align=4)
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
def _wrapped_word(address, before, bits, end):
    """The word of a group at ``address`` with ``before`` bytes (0 or 1) before it: its circle's end, then the group."""
    lead = _last_sixteen(address - before, bits)
    if before == 1:
        lead = ((lead & np.uint64(255)) << np.uint64(8)) | np.uint64(byte_at(address - 1))
    return (lead << np.uint64(48)) | (_bytes(address, end) >> np.uint64(16))


@lru_cache(maxsize=64)
def _product(state_bits: int, rate: int) -> Any:
    """The loop that adds the product of one sample with the unscaled values of ``n`` columns of this rate.

    It goes over groups of eight outputs, from ``first`` to ``last``. Its arguments: ``total [8 * groups]``, inputs
    ``[n]``, ``n``, codes of these columns, end of memory, value table, outputs.
    """
    reach = 12 if rate * OUTPUTS > FIRST_WORD else 8  # bytes read from where a group begins

    def multiply(first, last, arguments):
        total, x, n, codes, end, values, outputs = numbers(7, arguments)
        width, zero = (outputs * rate + 7) >> 3, np.float32(0)
        lines = (last - first) * rate // LINE + 1  # of a column
        together = BLOCK * lines // (last - first) + 1
        for begin in range(0, n, BLOCK):
            stop, ahead, left = min(begin + BLOCK, n), codes + (begin + BLOCK) * width + first * rate, lines
            for group in range(first, last):
                sums = (zero, zero, zero, zero, zero, zero, zero, zero)
                at = codes + begin * width + group * rate
                inside = max(begin, min(stop, begin + (end - reach - at) // width + 1))
                # The next block's bytes of these groups, in step: as many streams as columns are more than a
                # processor follows.
                for _ in range(together):
                    fetch_ahead(ahead)
                    ahead, left = ahead + LINE, left - 1
                    if left == 0:
                        ahead, left = ahead + width - lines * LINE, lines
                wraps = group * rate < 2
                if wraps:
                    inside = begin
                for column in range(begin, inside):
                    word = word_at(at - 2)
                    later = word_at(at + 4) if reach > 8 else word
                    sums = _add_products(rate, state_bits, word, later, values, float_at(x + 4 * column), sums)
                    at += width
                for column in range(inside, stop):
                    word = _wrapped_word(at, group * rate, outputs * rate, end) if wraps else _bytes(at - 2, end)
                    later = _bytes(at + 4, end)
                    sums = _add_products(rate, state_bits, word, later, values, float_at(x + 4 * column), sums)
                    at += width
                target = total + 4 * OUTPUTS * group
                for place in range(OUTPUTS):
                    put_float(float_at(target + 4 * place) + sums[place], target + 4 * place)

    return shared_loop(multiply)


@compiled(inline="always")
def _state(stream, output, rate, outputs, state_bits):
    """The state of ``output`` in a circular stream: three bytes where the window lies inside of it, else bit by bit."""
    bits, start = outputs * rate, (output + 1) * rate - state_bits
    if start < 0:
        return wrapped_window(stream, (output + 1) * rate, bits, state_bits)
    if start + 24 > bits:
        return read_bits(stream, start, state_bits)
    at = start >> 3
    three = (np.int64(stream[at]) << 16) | (np.int64(stream[at + 1]) << 8) | np.int64(stream[at + 2])
    return (three >> (24 - state_bits - (start & 7))) & ((np.int64(1) << state_bits) - 1)


@compiled(nogil=True)
def _add_gradients(grad, codes, starts, rates, tables, state_bits, scale, grad_tables, grad_scale):
    """Add to ``grad_tables [max rate, 2**state_bits]`` and ``grad_scale [outputs]``."""
    outputs = grad.shape[1]
    for column in range(len(rates)):
        rate = rates[column]
        if rate == 0:
            continue
        stream = codes[starts[column] :]
        for output in range(outputs):
            state = _state(stream, output, rate, outputs, state_bits)
            grad_tables[rate - 1, state] += grad[column, output] * scale[output]
            grad_scale[output] += grad[column, output] * tables[rate - 1, state]
