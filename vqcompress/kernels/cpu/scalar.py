"""Scalar columns to values, or straight into a product, sixteen weights at a time; compiled for one code size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from vqcompress.kernels.cpu.loops import _read_bits, shared_loop
from vqcompress.kernels.cpu.parts import numbers, raw_pointer
from vqcompress.kernels.cpu.row_loops import scale_at
from vqcompress.kernels.cpu.vectors import (
    add,
    fetch_ahead,
    float_at,
    load,
    multiply_add,
    put_float,
    store,
    times,
    zeros,
)
from vqcompress.kernels.cpu.windows import LANES, differences, window_bytes

PART = 4 * LANES  # bytes of sixteen floats


@lru_cache(maxsize=16)
def scalar_decoder(bits: int) -> Any:
    """Over columns, for ``(values [columns, rows], codes, zeros, scales [groups, rows], group_size)``: fills columns ``first … last``."""
    loaded, step = window_bytes(bits, bits, 0), 2 * bits

    def decode(first, last, arguments):
        values, _, rows, codes_at, length, offsets_at, zero_bytes, scales, _, _, group_size = numbers(11, arguments)
        codes, offsets = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(offsets_at), zero_bytes, np.uint8),
        )
        width = (rows * bits + 7) // 8
        for column in range(first, last):
            group = column // group_size
            own, zero = column * width, group * width
            room = min(len(codes) - own, len(offsets) - zero)
            whole = max(0, min(rows // LANES, (room - loaded) // step + 1))
            at, offset = codes_at + own, offsets_at + zero
            gains, target = scales + 4 * rows * group, values + 4 * rows * column
            for part in range(whole):
                steps = differences(bits, at + step * part, offset + step * part)
                store(times(steps, load(LANES, gains + PART * part)), target + PART * part)
            for row in range(whole * LANES, rows):
                value = _read_bits(codes, own * 8 + row * bits, bits) - _read_bits(offsets, zero * 8 + row * bits, bits)
                put_float(np.float32(value) * float_at(gains + 4 * row), target + 4 * row)

    return shared_loop(decode)


@lru_cache(maxsize=16)
def scalar_row(bits: int) -> Any:
    """Over parts of 32 outputs, for the addresses and numbers ``(total [rows padded to 32], x, columns, codes, its bytes, zeros, its
    bytes, scales [groups, rows], their bytes each, groups, rows, group_size)``: adds to the sums of the parts ``first … last`` the
    product of one input row ``x [columns]``.

    Within a group the scale is the same for all inputs, so it is applied to the group's sum.
    """
    loaded, step = window_bytes(bits, bits, 0), 2 * bits

    def multiply(first, last, arguments):
        total, x, columns, codes_at, length, offsets_at, zero_bytes, scales, size, groups, rows, group_size = numbers(
            12, arguments
        )
        codes, offsets = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(offsets_at), zero_bytes, np.uint8),
        )
        width = (rows * bits + 7) // 8
        safe = np.zeros(len(offsets) + 2 * loaded, np.uint8)  # a window may reach beyond the last
        safe[: len(offsets)] = offsets
        padded = np.zeros(2 * LANES, np.float32)
        for group in range(groups):
            begin, stop = group * group_size, min((group + 1) * group_size, columns)
            for part in range(first, last):
                a, b = zeros(LANES), zeros(LANES)
                at, offset = begin * width + 2 * step * part, safe.ctypes.data + group * width + 2 * step * part
                inside = max(begin, min(stop, begin + (length - step - loaded - at) // width + 1))
                at += codes_at
                for column in range(begin, inside):
                    fetch_ahead(at + group_size * width)
                    factor = float_at(x + 4 * column)
                    a = multiply_add(differences(bits, at, offset), factor, a)
                    b = multiply_add(differences(bits, at + step, offset + step), factor, b)
                    at += width
                row, count = 2 * LANES * part, min(2 * LANES, rows - 2 * LANES * part)
                for output in range(count):
                    padded[output] = scale_at(scales + size * (rows * group + row + output), size)
                target, gains = total + 4 * row, padded.ctypes.data
                store(add(load(LANES, target), times(a, load(LANES, gains))), target)
                store(add(load(LANES, target + PART), times(b, load(LANES, gains + PART))), target + PART)
                for column in range(inside, stop):  # where a window would reach beyond the codes
                    for output in range(row, row + count):
                        code = _read_bits(codes, column * width * 8 + output * bits, bits)
                        value = code - _read_bits(offsets, group * width * 8 + output * bits, bits)
                        product = np.float32(value) * padded[output - row] * float_at(x + 4 * column)
                        put_float(float_at(total + 4 * output) + product, total + 4 * output)

    return shared_loop(multiply)
