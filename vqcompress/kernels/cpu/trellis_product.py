"""Trellis columns into a product; compiled for one state size and rate, in half bits.

A product takes eight outputs at a time, their sums in registers, along a block of columns. Every weight is one look-up
whose value goes straight into a multiplication; nothing else of it is ever written. Eight weights of ``k`` bits are
``k`` whole bytes, and with the two bytes before them at most ten, so one load (two above 6 bits) and constant shifts
give all their states. At half-integer rates every other eight weights begin in the middle of a byte: a shift by four.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from vqcompress.formats import TrellisSpec
from vqcompress.kernels.cpu.arguments import block_arguments, stored_order
from vqcompress.kernels.cpu.loops import last_sixteen, numbers, shared_loop
from vqcompress.kernels.cpu.operations import Blocks
from vqcompress.kernels.cpu.trellis_tables import rate_table
from vqcompress.kernels.cpu.vectors import byte_at, fetch_ahead, float_at, fused, pointer, put_float, word_at
from vqcompress.kernels.cpu.windows import second_table
from vqcompress.machine_code import compiled

OUTPUTS = 8  # that a product takes at a time
BLOCK = 32  # columns whose inputs, and the lines of whose codes, stay in the first cache beside the table
LINE = 64  # bytes of a cache line
FIRST_WORD = 48  # bits of the group's own in the word that starts two bytes before it


def product_blocks(
    x: int, total: int, spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int
) -> Blocks:
    """The loops of a product, one for each rate."""
    stored, codes = stored_order(spec, tensors, outputs, columns), tensors["weight"]
    begin, values = codes.data_ptr(), stored.inputs(x)
    end, tables = begin + codes.numel(), [rate_table(spec, spec.halves(block.rate), tensors) for block in stored.blocks]
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
    lead = (last_sixteen(column, bits) << np.uint64(before)) | (first >> np.uint64(63 - before) >> np.uint64(1))
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
