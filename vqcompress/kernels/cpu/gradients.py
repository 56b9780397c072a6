"""The numba loops behind `vqcompress.kernels.parameter_gradients`: each weight's gradient goes to the numbers it was made of.

``grad`` is the gradient of ``Wᵀ [columns, rows]``, float32; sums run in float64, in one order.
"""

from __future__ import annotations

import numpy as np

from vqcompress.kernels.cpu.loops import _compiled, _read_bits, _wrapped_window


@_compiled(inline="always")
def _state(stream, row, rate, rows, state_bits):
    """The state of ``row`` in a circular stream: three bytes where the window lies inside of it, else bit by bit."""
    bits, start = rows * rate, (row + 1) * rate - state_bits
    if start < 0:
        return _wrapped_window(stream, (row + 1) * rate, bits, state_bits)
    if start + 24 > bits:
        return _read_bits(stream, start, state_bits)
    at = start >> 3
    three = (np.int64(stream[at]) << 16) | (np.int64(stream[at + 1]) << 8) | np.int64(stream[at + 2])
    return (three >> (24 - state_bits - (start & 7))) & ((np.int64(1) << state_bits) - 1)


@_compiled(nogil=True)
def trellis(grad, codes, starts, rates, tables, state_bits, scale, grad_tables, grad_scale):
    """Add to ``grad_tables [max rate, 2**state_bits]`` and ``grad_scale [rows]``."""
    rows = grad.shape[1]
    for column in range(len(rates)):
        rate = rates[column]
        if rate == 0:
            continue
        stream = codes[starts[column] :]
        for row in range(rows):
            state = _state(stream, row, rate, rows, state_bits)
            grad_tables[rate - 1, state] += grad[column, row] * scale[row]
            grad_scale[row] += grad[column, row] * tables[rate - 1, state]


@_compiled(nogil=True)
def additive(grad, codes, starts, rates, codebooks, code_bits, scale, grad_books, grad_scale):
    """Add to ``grad_books [M, 2**code_bits, dimension]`` and ``grad_scale [rows]``."""
    rows, dimension = grad.shape[1], codebooks.shape[2]
    for column in range(len(rates)):
        rate = rates[column]
        stream = codes[starts[column] :]
        for vector in range(-(-rows // dimension)):
            first = vector * dimension
            for book in range(rate):
                code = _read_bits(stream, (vector * rate + book) * code_bits, code_bits)
                for place in range(min(dimension, rows - first)):
                    row = first + place
                    grad_books[book, code, place] += grad[column, row] * scale[row]
                    grad_scale[row] += grad[column, row] * codebooks[book, code, place]


@_compiled(nogil=True)
def scalar(grad, codes, zeros, bits, group_size, grad_scales):
    """Add to ``grad_scales [groups, rows]``."""
    columns, rows = grad.shape
    width = (rows * bits + 7) // 8
    for column in range(columns):
        group = column // group_size
        own, zero = codes[column * width :], zeros[group * width :]
        for row in range(rows):
            step = _read_bits(own, row * bits, bits) - _read_bits(zero, row * bits, bits)
            grad_scales[group, row] += grad[column, row] * step
