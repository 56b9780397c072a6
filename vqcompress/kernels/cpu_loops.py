"""The numba loops behind `vqcompress.kernels.cpu_numba`: plain arrays in, some columns of one output array filled.

They release the interpreter lock, so that threads can share the columns of a large weight. (numba's own parallel loops keep a
pool that spins beside torch's, and do not survive a fork.)

No fast-math: products and sums round as in the reference, so the results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _compiled(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit` with the machine code cached on disk, where a folder for it can be written."""

    def decorate(function: Callable) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba's words for "no locator available": neither here nor in the user's cache
            return numba.njit(**options)(function)

    return decorate


@_compiled(inline="always")
def _read_bits(stream, start, count):
    """``count`` bits from bit ``start`` on, most significant first."""
    value = np.int64(0)
    for bit in range(start, start + count):
        value = (value << 1) | ((np.int64(stream[bit >> 3]) >> (7 - (bit & 7))) & 1)
    return value


@_compiled()
def unpack_rates(packed, columns, min_rate, rate_bits):
    """Rates of all columns, int64 ``[columns]``."""
    rates = np.empty(columns, np.int64)
    for column in range(columns):
        rates[column] = min_rate + _read_bits(packed, column * rate_bits, rate_bits)
    return rates


@_compiled()
def column_starts(rates, column_bits):
    """First byte of each column; columns lie in order of rate, then of index. ``column_bits[rate]`` is a column's length."""
    starts = np.empty(len(rates), np.int64)
    at = 0
    for rate in range(len(column_bits)):
        size = (column_bits[rate] + 7) // 8
        for column in range(len(rates)):
            if rates[column] == rate:
                starts[column] = at
                at += size
    return starts


@_compiled(nogil=True)
def decode_trellis(first, last, values, codes, starts, rates, tables, state_bits, scale):
    """Fill columns ``first … last`` of ``values [columns, rows]``; ``tables[k - 1]`` are rate ``k``'s, ``scale [rows]``."""
    for column in range(first, last):
        rate = rates[column]
        if rate == 0:
            values[column] = np.float32(0) * scale
        else:
            _decode_stream(codes[starts[column] :], rate, tables[rate - 1], state_bits, scale, values[column])


@_compiled(inline="always")
def _decode_stream(stream, rate, table, state_bits, scale, out):
    """One circular stream: a state is the ``state_bits`` bits that end with the weight's own ``rate`` bits."""
    rows = len(out)
    bits = rows * rate
    mask = (np.int64(1) << state_bits) - 1
    # The first windows reach back over the end of the stream, the last ones may not have three bytes to read.
    first = min(rows, -(-state_bits // rate))
    last = max(first, min(rows, (bits - 24 + state_bits) // rate))
    for row in range(first):
        out[row] = table[_wrapped_window(stream, (row + 1) * rate, bits, state_bits)] * scale[row]
    for row in range(first, last):
        start = (row + 1) * rate - state_bits
        at = start >> 3
        three = (np.int64(stream[at]) << 16) | (np.int64(stream[at + 1]) << 8) | np.int64(stream[at + 2])
        out[row] = table[(three >> (24 - state_bits - (start & 7))) & mask] * scale[row]
    for row in range(last, rows):
        out[row] = table[_read_bits(stream, (row + 1) * rate - state_bits, state_bits)] * scale[row]


@_compiled(inline="always")
def _wrapped_window(stream, stop, bits, count):
    """The ``count`` bits before bit ``stop`` of a circular stream of ``bits`` bits."""
    value = np.int64(0)
    for bit in range(stop - count, stop):
        at = bit % bits
        value = (value << 1) | ((np.int64(stream[at >> 3]) >> (7 - (at & 7))) & 1)
    return value


@_compiled(nogil=True)
def decode_additive(first, last, values, codes, starts, rates, codebooks, code_bits, scale):
    """Fill columns ``first … last`` of ``values`` with sums of codewords of ``codebooks [M, 2**code_bits, dimension]``."""
    dimension = codebooks.shape[2]
    for column in range(first, last):
        stream = codes[starts[column] :]
        for vector in range(-(-values.shape[1] // dimension)):
            row = vector * dimension
            _sum_codewords(
                stream, vector * rates[column], rates[column], codebooks, code_bits, scale[row:], values[column, row:]
            )


@_compiled(inline="always")
def _sum_codewords(stream, code, rate, codebooks, code_bits, scale, out):
    """One vector: codes ``code … code + rate`` of the column, summed in that order, then scaled."""
    width = min(codebooks.shape[2], len(out))
    for place in range(width):
        out[place] = np.float32(0)
    for book in range(rate):
        if code_bits == 8:
            index = np.int64(stream[code + book])
        else:
            index = _read_bits(stream, (code + book) * code_bits, code_bits)
        for place in range(width):
            out[place] += codebooks[book, index, place]
    for place in range(width):
        out[place] *= scale[place]


@_compiled(nogil=True)
def decode_scalar(first, last, values, codes, zeros, scales, bits, group_size):
    """Fill columns ``first … last`` of ``values`` from codes and zeros of ``bits`` bits and ``scales [groups, rows]``."""
    rows = values.shape[1]
    width = (rows * bits + 7) // 8
    for column in range(first, last):
        group = column // group_size
        own, zero = codes[column * width :], zeros[group * width :]
        for row in range(rows):
            step = _read_bits(own, row * bits, bits) - _read_bits(zero, row * bits, bits)
            values[column, row] = np.float32(step) * scales[group, row]
