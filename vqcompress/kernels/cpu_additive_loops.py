"""Additive columns to values, a vector at a time; compiled for one dimension and code size."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vqcompress.kernels.cpu_loops import _compiled, _read_bits
from vqcompress.kernels.cpu_words import add_word, begin_word, multiply_add_word, scale_word


@_compiled(inline="always")
def _code(stream, index, code_bits):
    if code_bits == 8:
        return np.int64(stream[index])
    bit = index * code_bits
    at, last = bit >> 3, (bit + code_bits - 1) >> 3
    if last - at == 1:  # nearly always
        two = (np.int64(stream[at]) << 8) | np.int64(stream[last])
        return (two >> (16 - code_bits - (bit & 7))) & ((1 << code_bits) - 1)
    return _read_bits(stream, bit, code_bits)


@lru_cache(maxsize=64)
def additive_decoder(dimension: int, code_bits: int) -> Callable[..., None]:
    """``(first, last, values [columns, rows], codes, starts, rates, codebooks [M, 2**code_bits, dimension], scale [rows])`` fills
    columns ``first … last``."""
    size = dimension << code_bits

    def decode(first, last, values, codes, starts, rates, codebooks, scale):
        rows, books = values.shape[1], codebooks.reshape(-1)
        whole = rows // dimension
        for column in range(first, last):
            stream, out, rate = codes[starts[column] :], values[column], rates[column]
            if rate == 0:
                values[column] = np.float32(0) * scale
                continue
            for vector in range(whole):
                row, code = vector * dimension, vector * rate
                begin_word(dimension, books, _code(stream, code, code_bits) * dimension, out, row)
                for book in range(1, rate):
                    word = book * size + _code(stream, code + book, code_bits) * dimension
                    add_word(dimension, books, word, out, row)
                scale_word(dimension, scale, out, row)
            for row in range(whole * dimension, rows):
                total = np.float32(0)
                for book in range(rate):
                    total += codebooks[book, _code(stream, whole * rate + book, code_bits), row - whole * dimension]
                out[row] = total * scale[row]

    return _compiled(nogil=True)(decode)


@lru_cache(maxsize=64)
def additive_row(dimension: int, code_bits: int) -> Callable[..., None]:
    """``(first, last, total [padded], x [columns], codes, starts, rates, codebooks, vectors)``: adds to ``total`` the product of one input
    row with the unscaled values of columns ``first … last``; ``padded`` is ``vectors * dimension``."""
    size = dimension << code_bits

    def multiply(first, last, total, x, codes, starts, rates, codebooks, vectors):
        books = codebooks.reshape(-1)
        for column in range(first, last):
            stream, rate, factor = codes[starts[column] :], rates[column], x[column]
            for vector in range(vectors):
                for book in range(rate):
                    word = book * size + _code(stream, vector * rate + book, code_bits) * dimension
                    multiply_add_word(dimension, books, word, factor, total, vector * dimension)

    return _compiled(nogil=True)(multiply)
