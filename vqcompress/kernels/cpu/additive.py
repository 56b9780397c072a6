"""Additive columns to values, into a product, or to gradients, a vector at a time.

Loops are compiled for one dimension and code size.

Addresses are integers, see `vqcompress.kernels.cpu.vectors`. Sums of codewords begin with a zero: one that began with
-0 would stay -0, where the reference has 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from vqcompress.formats import AdditiveSpec
from vqcompress.kernels.cpu.arguments import (
    block_arguments,
    byte_array,
    float_array,
    float_codebooks,
    gradient_tensor,
    output_scale,
    rates_and_starts,
    run_over_columns,
    stored_order,
)
from vqcompress.kernels.cpu.loops import numbers, raw_pointer, read_bits, shared_loop
from vqcompress.kernels.cpu.operations import Blocks, Operations
from vqcompress.kernels.cpu.vectors import (
    add,
    byte_at,
    fetch_ahead,
    float_at,
    load,
    multiply_add,
    put_float,
    store,
    times,
    zeros,
)
from vqcompress.machine_code import compiled

BLOCK = 32  # columns whose inputs, and the lines of whose codes, stay in the first cache beside the codebooks
LINE = 64  # bytes of a cache line


def decode(values: Tensor, spec: AdditiveSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``values [columns, outputs]``."""
    columns, outputs = values.shape
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    codes, codebooks = byte_array(tensors["weight"]), float_array(tensors["codebooks"])
    loop = _decoder(spec.dimension, spec.code_bits)
    run_over_columns(loop, values, codes, starts, rates, codebooks, output_scale(tensors["scale"], outputs))


def product_blocks(
    x: int, total: int, spec: AdditiveSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int
) -> Blocks:
    """The loops of a product, one for each rate."""
    stored, codebooks, vectors = (
        stored_order(spec, tensors, outputs, columns),
        float_codebooks(tensors),
        spec.vectors(outputs),
    )
    begin, values = tensors["weight"].data_ptr(), stored.inputs(x)
    blocks = [
        block_arguments(
            _product(spec.dimension, spec.code_bits, block.rate),
            total,
            values.data_ptr() + 4 * block.first,
            block.last - block.first,
            begin + block.start,
            codebooks.data_ptr(),
            vectors,
        )
        for block in stored.blocks
    ]
    return blocks, (values, codebooks)


def parameter_gradients(spec: AdditiveSpec, tensors: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Gradients of ``scale`` and ``codebooks``; ``grad [columns, outputs]``."""
    columns, outputs = grad.shape
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    codes, codebooks = byte_array(tensors["weight"]), float_array(tensors["codebooks"])
    scale = output_scale(tensors["scale"], outputs)
    grad_codebooks, grad_scale = np.zeros(codebooks.shape), np.zeros(outputs)
    _add_gradients(grad.numpy(), codes, starts, rates, codebooks, spec.code_bits, scale, grad_codebooks, grad_scale)
    grad_scale = grad_scale if spec.row_scales else grad_scale.sum(keepdims=True)
    return {"scale": gradient_tensor(grad_scale), "codebooks": gradient_tensor(grad_codebooks)}


OPERATIONS = Operations(decode, lambda spec: spec.dimension, product_blocks, parameter_gradients)


@compiled(inline="always")
def _code(stream, index, code_bits):
    if code_bits == 8:
        return byte_at(stream + index)
    bit, value = index * code_bits, np.int64(0)
    last = (bit + code_bits - 1) >> 3
    for place in range(bit >> 3, last + 1):
        value = (value << 8) | byte_at(stream + place)
    return (value >> (8 * (last + 1) - bit - code_bits)) & ((1 << code_bits) - 1)


@lru_cache(maxsize=64)
def _decoder(dimension: int, code_bits: int) -> Any:
    """The loop that fills columns ``first … last``.

    Its arguments: ``values [columns, outputs]``, codes, starts, rates, codebooks ``[M, 2**code_bits, dimension]``,
    scale ``[outputs]``.
    """
    word = 4 * dimension  # bytes
    size = word << code_bits

    def decode(first, last, arguments):
        values, columns, outputs, codes, _, starts_at, _, rates_at, _, codebooks, _, _, _, scale, _ = numbers(
            15, arguments
        )
        starts, rates = (
            carray(raw_pointer(starts_at), columns, np.int64),
            carray(raw_pointer(rates_at), columns, np.int64),
        )
        whole = outputs // dimension
        for column in range(first, last):
            stream, rate = codes + starts[column], rates[column]
            target = values + 4 * outputs * column
            for vector in range(whole):
                total = zeros(dimension)
                for codebook in range(rate):
                    at = codebooks + codebook * size + word * _code(stream, vector * rate + codebook, code_bits)
                    total = add(total, load(dimension, at))
                store(times(total, load(dimension, scale + vector * word)), target + vector * word)
            for output in range(whole * dimension, outputs):
                value = np.float32(0)
                for codebook in range(rate):
                    at = codebooks + codebook * size + word * _code(stream, whole * rate + codebook, code_bits)
                    value += float_at(at + 4 * (output - whole * dimension))
                put_float(value * float_at(scale + 4 * output), target + 4 * output)

    return shared_loop(decode)


@lru_cache(maxsize=64)
def _product(dimension: int, code_bits: int, rate: int) -> Any:
    """The loop that adds the product of one sample with the unscaled values of ``n`` columns of this rate.

    It goes over vectors of outputs, from ``first`` to ``last``. Its arguments: ``total [vectors * dimension]``, inputs
    ``[n]``, ``n``, codes, codebooks, vectors.
    """
    word = 4 * dimension
    size = word << code_bits

    def multiply(first, last, arguments):
        sums, x, n, codes, codebooks, vectors = numbers(6, arguments)
        width = (vectors * rate * code_bits + 7) >> 3
        for begin in range(0, n, BLOCK):
            stop, vector = min(begin + BLOCK, n), first
            while vector + 4 <= last:  # four at a time: a multiplication waits for the one before it
                place, stream = vector * rate, codes + begin * width
                ahead = (4 * rate * code_bits * BLOCK) >> 3
                for line in range(vector // 4 * ahead, (vector // 4 + 1) * ahead, LINE):
                    fetch_ahead(codes + (begin + BLOCK) * width + line)
                a, b, c, d = zeros(dimension), zeros(dimension), zeros(dimension), zeros(dimension)
                for column in range(begin, stop):
                    p, q, r, s = zeros(dimension), zeros(dimension), zeros(dimension), zeros(dimension)
                    for codebook in range(rate):
                        at = codebooks + codebook * size
                        p = add(p, load(dimension, at + word * _code(stream, place + codebook, code_bits)))
                        q = add(q, load(dimension, at + word * _code(stream, place + rate + codebook, code_bits)))
                        r = add(r, load(dimension, at + word * _code(stream, place + 2 * rate + codebook, code_bits)))
                        s = add(s, load(dimension, at + word * _code(stream, place + 3 * rate + codebook, code_bits)))
                    factor = float_at(x + 4 * column)
                    a, b = multiply_add(p, factor, a), multiply_add(q, factor, b)
                    c, d = multiply_add(r, factor, c), multiply_add(s, factor, d)
                    stream += width
                target = sums + vector * word
                store(add(load(dimension, target), a), target)
                store(add(load(dimension, target + word), b), target + word)
                store(add(load(dimension, target + 2 * word), c), target + 2 * word)
                store(add(load(dimension, target + 3 * word), d), target + 3 * word)
                vector += 4
            while vector < last:
                a, stream = zeros(dimension), codes + begin * width
                for column in range(begin, stop):
                    p = zeros(dimension)
                    for codebook in range(rate):
                        at = codebooks + codebook * size + word * _code(stream, vector * rate + codebook, code_bits)
                        p = add(p, load(dimension, at))
                    a = multiply_add(p, float_at(x + 4 * column), a)
                    stream += width
                store(add(load(dimension, sums + vector * word), a), sums + vector * word)
                vector += 1

    return shared_loop(multiply)


@compiled(nogil=True)
def _add_gradients(grad, codes, starts, rates, codebooks, code_bits, scale, grad_codebooks, grad_scale):
    """Add to ``grad_codebooks [M, 2**code_bits, dimension]`` and ``grad_scale [outputs]``."""
    outputs, dimension = grad.shape[1], codebooks.shape[2]
    for column in range(len(rates)):
        rate = rates[column]
        stream = codes[starts[column] :]
        for vector in range(-(-outputs // dimension)):
            first = vector * dimension
            for codebook in range(rate):
                code = read_bits(stream, (vector * rate + codebook) * code_bits, code_bits)
                for place in range(min(dimension, outputs - first)):
                    output = first + place
                    grad_codebooks[codebook, code, place] += grad[column, output] * scale[output]
                    grad_scale[output] += grad[column, output] * codebooks[codebook, code, place]
