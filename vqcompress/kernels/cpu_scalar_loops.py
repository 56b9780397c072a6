"""Scalar columns to values, or straight into a product, sixteen weights at a time; compiled for one code size."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vqcompress.kernels.cpu_loops import _compiled, _read_bits
from vqcompress.kernels.cpu_vectors import add, fetch_ahead, float_at, load, multiply_add, store, times, zeros
from vqcompress.kernels.cpu_windows import LANES, differences, window_bytes

PART = 4 * LANES  # bytes of sixteen floats


@lru_cache(maxsize=16)
def scalar_decoder(bits: int) -> Callable[..., None]:
    """``(first, last, values [columns, rows], codes, zeros, scales [groups, rows], group_size)`` fills columns ``first … last``."""
    loaded, step = window_bytes(bits, bits, 0), 2 * bits

    def decode(first, last, values, codes, offsets, scales, group_size):
        rows = values.shape[1]
        width = (rows * bits + 7) // 8
        for column in range(first, last):
            group = column // group_size
            own, zero = column * width, group * width
            room = min(len(codes) - own, len(offsets) - zero)
            whole = max(0, min(rows // LANES, (room - loaded) // step + 1))
            at, offset = codes.ctypes.data + own, offsets.ctypes.data + zero
            gains, target = scales[group].ctypes.data, values[column].ctypes.data
            for part in range(whole):
                steps = differences(bits, at + step * part, offset + step * part)
                store(times(steps, load(LANES, gains + PART * part)), target + PART * part)
            for row in range(whole * LANES, rows):
                value = _read_bits(codes, own * 8 + row * bits, bits) - _read_bits(offsets, zero * 8 + row * bits, bits)
                values[column, row] = np.float32(value) * scales[group, row]

    return _compiled(nogil=True)(decode)


@lru_cache(maxsize=16)
def scalar_row(bits: int) -> Callable[..., None]:
    """``(first, last, total [rows padded to 32], x, columns, codes, zeros, scales [groups, rows], group_size)``: adds to the sums of the
    parts ``first … last`` of 32 outputs the product of one input row, floats at the address ``x``.

    Within a group the scale is the same for all inputs, so it is applied to the group's sum.
    """
    loaded, step = window_bytes(bits, bits, 0), 2 * bits

    def multiply(first, last, total, x, columns, codes, offsets, scales, group_size):
        rows = scales.shape[1]
        width = (rows * bits + 7) // 8
        safe = np.zeros(len(offsets) + 2 * loaded, np.uint8)  # a window may reach beyond the last
        safe[: len(offsets)] = offsets
        padded = np.zeros(2 * LANES, np.float32)
        for group in range(scales.shape[0]):
            begin, stop = group * group_size, min((group + 1) * group_size, columns)
            for part in range(first, last):
                a, b = zeros(LANES), zeros(LANES)
                at, offset = begin * width + 2 * step * part, safe.ctypes.data + group * width + 2 * step * part
                inside = max(begin, min(stop, begin + (len(codes) - step - loaded - at) // width + 1))
                at += codes.ctypes.data
                for column in range(begin, inside):
                    fetch_ahead(at + group_size * width)
                    factor = float_at(x + 4 * column)
                    a = multiply_add(differences(bits, at, offset), factor, a)
                    b = multiply_add(differences(bits, at + step, offset + step), factor, b)
                    at += width
                row, count = 2 * LANES * part, min(2 * LANES, rows - 2 * LANES * part)
                padded[:count] = scales[group, row : row + count]
                target, gains = total.ctypes.data + 4 * row, padded.ctypes.data
                store(add(load(LANES, target), times(a, load(LANES, gains))), target)
                store(add(load(LANES, target + PART), times(b, load(LANES, gains + PART))), target + PART)
                for column in range(inside, stop):  # where a window would reach beyond the codes
                    for place in range(row, row + count):
                        code = _read_bits(codes, column * width * 8 + place * bits, bits)
                        value = code - _read_bits(offsets, group * width * 8 + place * bits, bits)
                        total[place] += np.float32(value) * scales[group, place] * float_at(x + 4 * column)

    return _compiled(nogil=True)(multiply)
