"""Reading packed bytes on the CPU with numba: bit fields, rates, where columns start.

The loops that decode whole columns are in ``cpu_trellis_loops``, ``cpu_additive_loops`` and ``cpu_scalar_loops``. They are C
functions of addresses, which any thread can call without the interpreter (`vqcompress.kernels.cpu.threads`).

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


def native(signature: str) -> Callable[[Callable], Any]:
    """The function as a C function, with ``address`` to call it by from machine code and ``ctypes`` from here, without the
    interpreter's lock; its machine code cached likewise."""

    def decorate(function: Callable) -> Any:
        try:
            return numba.cfunc(signature, cache=True)(function)
        except RuntimeError:
            return numba.cfunc(signature)(function)

    return decorate


# (first, last, the address of what `vqcompress.kernels.cpu.threads.share` was given)
shared_loop = native("void(intp, intp, intp)")


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


@_compiled(inline="always")
def _wrapped_window(stream, stop, bits, count):
    """The ``count`` bits before bit ``stop`` of a circular stream of ``bits`` bits."""
    value = np.int64(0)
    for bit in range(stop - count, stop):
        at = bit % bits
        value = (value << 1) | ((np.int64(stream[at >> 3]) >> (7 - (at & 7))) & 1)
    return value
