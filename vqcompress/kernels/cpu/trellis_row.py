"""One row of inputs times trellis codes: eight outputs at a time, their sums in registers, along a block of columns.

Every weight is one look-up whose value goes straight into a multiplication; nothing else of it is ever written. Eight weights
of ``k`` bits are ``k`` whole bytes, and with the two bytes before them at most ten, so one load (two above 6 bits) and constant
shifts give all their states.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vqcompress.kernels.cpu.loops import _compiled, shared_loop
from vqcompress.kernels.cpu.parts import numbers
from vqcompress.kernels.cpu.trellis import last_sixteen
from vqcompress.kernels.cpu.vectors import byte_at, fetch_ahead, float_at, fused, pointer, put_float, word_at

OUTPUTS = 8
BLOCK = 32  # columns whose inputs, and the lines of whose codes, stay in the first cache beside the table
LINE = 64  # bytes of a cache line
FIRST_WORD = 48  # bits of the group's own in the word that starts two bytes before it


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


@_compiled()
def _bytes(address, end):
    """The eight bytes at ``address``; zeros from ``end`` on."""
    if address + 8 <= end:
        return word_at(address)
    word = np.uint64(0)
    for place in range(8):
        byte = byte_at(address + place) if address + place < end else 0
        word = (word << np.uint64(8)) | np.uint64(byte)
    return word


@_compiled()
def _wrapped_word(address, before, bits, end):
    """The word of a group at ``address`` that has only ``before`` bytes, none or one, of its circle before it: the circle's end, then
    the group."""
    lead = last_sixteen(address - before, bits)
    if before == 1:
        lead = ((lead & np.uint64(255)) << np.uint64(8)) | np.uint64(byte_at(address - 1))
    return (lead << np.uint64(48)) | (_bytes(address, end) >> np.uint64(16))


@lru_cache(maxsize=64)
def trellis_row(state_bits: int, rate: int) -> Any:
    """Over the groups ``first … last`` of eight outputs, for the addresses and numbers ``(total [8 * groups], inputs [n], n, codes, end, table, rows)``: adds to their
    sums the product of one input row with the unscaled values of ``n`` columns of this rate, whose bytes begin at
    ``codes``; memory ends at ``end``."""
    reach = 12 if rate * OUTPUTS > FIRST_WORD else 8  # bytes read from where a group begins

    def multiply(first, last, arguments):
        total, x, n, codes, end, values, rows = numbers(7, arguments)
        width, zero = (rows * rate + 7) >> 3, np.float32(0)
        lines = (last - first) * rate // LINE + 1  # of a column
        together = BLOCK * lines // (last - first) + 1
        for begin in range(0, n, BLOCK):
            stop, ahead, left = min(begin + BLOCK, n), codes + (begin + BLOCK) * width + first * rate, lines
            for group in range(first, last):
                sums = (zero, zero, zero, zero, zero, zero, zero, zero)
                at = codes + begin * width + group * rate
                inside = max(begin, min(stop, begin + (end - reach - at) // width + 1))
                # The next block's bytes of these groups, in step: as many streams as columns are more than a processor follows.
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
                    word = _wrapped_word(at, group * rate, rows * rate, end) if wraps else _bytes(at - 2, end)
                    later = _bytes(at + 4, end)
                    sums = _add_products(rate, state_bits, word, later, values, float_at(x + 4 * column), sums)
                    at += width
                target = total + 4 * OUTPUTS * group
                for place in range(OUTPUTS):
                    put_float(float_at(target + 4 * place) + sums[place], target + 4 * place)

    return shared_loop(multiply)
