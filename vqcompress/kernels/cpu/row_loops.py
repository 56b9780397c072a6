"""What comes before, around and after the loops over the codes of one row's product."""

from __future__ import annotations

import numpy as np

from vqcompress.kernels.cpu.loops import _compiled, native, shared_loop
from vqcompress.kernels.cpu.parts import call, numbers
from vqcompress.kernels.cpu.vectors import float_at, half_at, put_float

HEAD, STEP = 9, 13  # numbers of the product, and of each block


@_compiled(inline="always")
def scale_at(address, size):
    """The scale of ``size`` bytes at ``address``: float16 or float32."""
    return half_at(address) if size == 2 else float_at(address)


@native("void(intp, intp, intp, intp)")
def take(x, order, values, count):
    """``values[i] = x[order[i]]`` for floats at ``x`` and ``values``, int64 numbers at ``order``."""
    for index in range(count):
        (place,) = numbers(1, order + 8 * index)
        put_float(float_at(x + 4 * place), values + 4 * index)


@shared_loop
def row_product(first, last, arguments):
    """``y = total * scale + bias`` over parts of ``unit`` outputs, for the addresses and numbers ``(y, rows, total [padded], unit, scale,
    scales (one or a row each), their bytes each, bias, blocks)``; no ``scale`` or ``bias`` where that is 0.

    Each block's loop adds to ``total``: its address and, padded to twelve, what it is called with follow block by block.
    """
    y, rows, total, unit, scale, scales, size, bias, blocks = numbers(9, arguments)
    for output in range(first * unit, last * unit):
        put_float(np.float32(0), total + 4 * output)
    for block in range(blocks):
        at = arguments + 8 * (HEAD + STEP * block)
        (loop,) = numbers(1, at)
        call(loop, first, last, at + 8)
    for row in range(first * unit, min(last * unit, rows)):
        value = float_at(total + 4 * row)
        if scale != 0:
            value *= scale_at(scale + (size * row if scales > 1 else 0), size)
        if bias != 0:
            value += float_at(bias + 4 * row)
        put_float(value, y + 4 * row)
