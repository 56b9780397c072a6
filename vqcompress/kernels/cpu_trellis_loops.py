"""Trellis columns to values, or straight into a product, sixteen weights at a time; compiled for one state size and rate.

The first sixteen weights need the end of the circular stream before them, and the last few may end where memory does: both go
through a small buffer that holds their bytes as if they lay in sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vqcompress.kernels.cpu_loops import _compiled, _wrapped_window
from vqcompress.kernels.cpu_windows import LANES, look_up_add, look_up_scaled, window_bytes

EDGE = 34  # bytes of the small buffer: more than is ever loaded at once


@_compiled(inline="always")
def _fill_edge(edge, stream, rate, rows, group):
    """Bytes of sixteen weights and the two before them; zeros beyond the column."""
    bits, first = rows * rate, 2 * rate * group - 2
    for place in range(2 * rate + 2):
        at = first + place
        edge[place] = stream[at] if at >= 0 and at * 8 < bits else 0
    if group == 0:
        last = _last_sixteen(stream, bits)
        edge[0], edge[1] = last >> 8, last & 255


@_compiled(inline="always")
def _last_sixteen(stream, bits):
    """The circle's last sixteen bits."""
    if bits < 24:
        return _wrapped_window(stream, 0, bits, 16)
    at = (bits - 1) >> 3
    three = (np.int64(stream[at - 2]) << 16) | (np.int64(stream[at - 1]) << 8) | np.int64(stream[at])
    return (three >> (7 - ((bits - 1) & 7))) & 0xFFFF


@lru_cache(maxsize=64)
def trellis_decoder(state_bits: int, rate: int) -> Callable[..., None]:
    """``(first, last, values [columns, rows], codes, starts, rates, table, scale [padded])``: fills those of the columns
    ``first … last`` that have this rate. ``padded`` is the number of rows rounded up to sixteen."""
    loaded = window_bytes(rate, state_bits, 2)

    def decode(first, last, values, codes, starts, rates, table, scale):
        edge, sixteen = np.zeros(EDGE, np.uint8), np.empty(LANES, np.float32)
        rows = values.shape[1]
        for column in range(first, last):
            if rates[column] != rate:
                continue
            start, out = starts[column], values[column]
            inner = max(1, min(rows // LANES, (len(codes) - start + 2 - loaded) // (2 * rate) + 1))
            for group in range(1, inner):
                look_up_scaled(rate, state_bits, codes, start + 2 * rate * group, table, scale, out, LANES * group)
            group = 0
            while group * LANES < rows:
                _fill_edge(edge, codes[start:], rate, rows, group)
                look_up_scaled(rate, state_bits, edge, 2, table, scale[LANES * group :], sixteen, 0)
                for place in range(min(LANES, rows - LANES * group)):
                    out[LANES * group + place] = sixteen[place]
                group = inner if group == 0 else group + 1

    return _compiled(nogil=True)(decode)


@lru_cache(maxsize=64)
def trellis_row(state_bits: int, rate: int) -> Callable[..., None]:
    """``(first, last, total [padded], x [columns], codes, starts, rates, table, rows)``: adds to ``total`` the product of one input row
    with the unscaled values of those of the columns ``first … last`` that have this rate."""
    loaded = window_bytes(rate, state_bits, 2)

    def multiply(first, last, total, x, codes, starts, rates, table, rows):
        edge = np.zeros(EDGE, np.uint8)
        for column in range(first, last):
            if rates[column] != rate:
                continue
            start, factor = starts[column], x[column]
            inner = max(1, min(rows // LANES, (len(codes) - start + 2 - loaded) // (2 * rate) + 1))
            for group in range(1, inner):
                look_up_add(rate, state_bits, codes, start + 2 * rate * group, table, factor, total, LANES * group)
            group = 0
            while group * LANES < rows:
                _fill_edge(edge, codes[start:], rate, rows, group)
                look_up_add(rate, state_bits, edge, 2, table, factor, total, LANES * group)
                group = inner if group == 0 else group + 1

    return _compiled(nogil=True)(multiply)
