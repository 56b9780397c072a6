"""Trellis columns to values, sixteen weights at a time; compiled for one state size and rate.

The first sixteen weights need the end of the circular stream before them, and the last few may end where memory does: both go
through a small buffer that holds their bytes as if they lay in sequence.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from vqcompress.kernels.cpu.loops import _compiled, shared_loop
from vqcompress.kernels.cpu.parts import numbers, raw_pointer
from vqcompress.kernels.cpu.vectors import byte_at, load, store, times
from vqcompress.kernels.cpu.windows import LANES, look_up, window_bytes

EDGE = 34  # bytes of the small buffer: more than is ever loaded at once


@_compiled(inline="always")
def _fill_edge(edge, stream, rate, rows, group):
    """Bytes of sixteen weights and the two before them; zeros beyond the column."""
    bits, first = rows * rate, 2 * rate * group - 2
    for place in range(2 * rate + 2):
        at = first + place
        edge[place] = stream[at] if at >= 0 and at * 8 < bits else 0
    if group == 0:
        last = last_sixteen(stream.ctypes.data, bits)
        edge[0], edge[1] = last >> np.uint64(8), last & np.uint64(255)


@_compiled(inline="always")
def last_sixteen(address, bits):
    """The last sixteen bits of the circle of ``bits`` bits at ``address``."""
    if bits < 24:
        return wrapped_sixteen(address, bits)
    at = address + ((bits - 1) >> 3)
    three = (byte_at(at - 2) << 16) | (byte_at(at - 1) << 8) | byte_at(at)
    return np.uint64((three >> (7 - ((bits - 1) & 7))) & 0xFFFF)


@_compiled(inline="always")
def wrapped_sixteen(address, bits):
    """The same for a circle that may be shorter than that."""
    value = np.int64(0)
    for place in range(-16, 0):
        at = place % bits
        value = (value << 1) | ((byte_at(address + (at >> 3)) >> (7 - (at & 7))) & 1)
    return np.uint64(value)


@lru_cache(maxsize=64)
def trellis_decoder(state_bits: int, rate: int) -> Any:
    """Over columns, for ``(values [columns, rows], codes, starts, rates, table, scale [padded])``: fills those of the columns
    ``first … last`` that have this rate. ``padded`` is the number of rows rounded up to sixteen."""
    loaded = window_bytes(rate, state_bits, 2)

    def decode(first, last, arguments):
        out_at, columns, rows, codes_at, length, starts_at, _, rates_at, _, table, _, gains, _ = numbers(13, arguments)
        codes, values = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(out_at), (columns, rows), np.float32),
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
            at, target = codes_at + start, out_at + 4 * rows * column
            inner = max(1, min(rows // LANES, (length - start + 2 - loaded) // (2 * rate) + 1))
            for group in range(1, inner):
                found = look_up(rate, state_bits, at + 2 * rate * group, table)
                store(times(found, load(LANES, gains + 4 * LANES * group)), target + 4 * LANES * group)
            group = 0
            while group * LANES < rows:
                _fill_edge(edge, codes[start:], rate, rows, group)
                found = look_up(rate, state_bits, edge.ctypes.data + 2, table)
                store(times(found, load(LANES, gains + 4 * LANES * group)), sixteen.ctypes.data)
                for row in range(min(LANES, rows - LANES * group)):
                    out[LANES * group + row] = sixteen[row]
                group = inner if group == 0 else group + 1

    return shared_loop(decode)
