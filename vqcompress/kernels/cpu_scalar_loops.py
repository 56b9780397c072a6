"""Scalar columns to values, sixteen weights at a time; compiled for one code size."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vqcompress.kernels.cpu_loops import _compiled, _read_bits
from vqcompress.kernels.cpu_windows import LANES, differences_scaled, window_bytes


@lru_cache(maxsize=16)
def scalar_decoder(bits: int) -> Callable[..., None]:
    """``(first, last, values [columns, rows], codes, zeros, scales [groups, rows], group_size)`` fills columns ``first … last``."""
    loaded = window_bytes(bits, bits, 0)

    def decode(first, last, values, codes, zeros, scales, group_size):
        rows = values.shape[1]
        width, flat = (rows * bits + 7) // 8, scales.reshape(-1)
        for column in range(first, last):
            group, out = column // group_size, values[column]
            own, zero = column * width, group * width
            room = min(len(codes) - own, len(zeros) - zero)
            whole = max(0, min(rows // LANES, (room - loaded) // (2 * bits) + 1))
            for part in range(whole):
                at, row = 2 * bits * part, LANES * part
                differences_scaled(bits, codes, own + at, zeros, zero + at, flat, group * rows + row, out, row)
            for row in range(whole * LANES, rows):
                step = _read_bits(codes, own * 8 + row * bits, bits) - _read_bits(zeros, zero * 8 + row * bits, bits)
                out[row] = np.float32(step) * scales[group, row]

    return _compiled(nogil=True)(decode)
