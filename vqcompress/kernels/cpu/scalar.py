"""Scalar columns to values, into a product, or to gradients, sixteen weights at a time; compiled for one code size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.kernels.cpu.arguments import (
    block_arguments,
    byte_array,
    float_array,
    gradient_tensor,
    run_over_columns,
)
from vqcompress.kernels.cpu.loops import numbers, raw_pointer, read_bits, scale_at, shared_loop
from vqcompress.kernels.cpu.operations import Blocks, Operations, as_scale
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
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.machine_code import compiled

PART = 4 * LANES  # bytes of sixteen floats
OUTPUTS = 2 * LANES  # that a product takes at a time


def decode(values: Tensor, spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``values [columns, outputs]``."""
    codes, offsets = byte_array(tensors["weight"]), byte_array(tensors["group_zero"])
    factors = _factors(spec, values.shape[1], tensors)
    scales = float_array(factors * tensors["scale"].detach().float() if spec.packed_scales else factors)
    run_over_columns(_decoder(spec.bits), values, codes, offsets, scales, spec.group_size)


def product_blocks(
    x: int, total: int, spec: ScalarSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int
) -> Blocks:
    """The loop of a product; scales differ along the columns, so it applies them, except for an output's factor."""
    codes, offsets, scales = tensors["weight"], tensors["group_zero"], as_scale(_factors(spec, outputs, tensors))
    stored = (total, x, columns, codes.data_ptr(), codes.nbytes, offsets.data_ptr(), offsets.nbytes)
    block = block_arguments(
        _product(spec.bits), *stored, scales.data_ptr(), scales.itemsize, len(scales), outputs, spec.group_size
    )
    return [block], (scales,)


def parameter_gradients(spec: ScalarSpec, tensors: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Gradients of ``group_scale``, or of the ``scale`` of packed ones; ``grad [columns, outputs]``."""
    columns, outputs = grad.shape
    group_scale = np.zeros((spec.groups(columns), outputs))
    codes, offsets = byte_array(tensors["weight"]), byte_array(tensors["group_zero"])
    _add_gradients(grad.numpy(), codes, offsets, spec.bits, spec.group_size, group_scale)
    if not spec.packed_scales:
        return {"group_scale": gradient_tensor(group_scale)}
    return {"scale": gradient_tensor((group_scale * _factors(spec, outputs, tensors).numpy()).sum(0))}


_FACTORS: TensorCache[Tensor] = TensorCache()


def _factors(spec: ScalarSpec, outputs: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """`ScalarSpec.group_factors`; integers are unpacked once, into float16, which holds them exactly."""
    if not spec.packed_scales:
        return tensors["group_scale"].detach()
    return _FACTORS(tensors["group_scale"], (spec, outputs), lambda: spec.group_factors(outputs, tensors).half())


OPERATIONS = Operations(decode, lambda spec: OUTPUTS, product_blocks, parameter_gradients)


@lru_cache(maxsize=16)
def _decoder(bits: int) -> Any:
    """The loop that fills columns ``first … last``.

    Its arguments: ``values [columns, outputs]``, codes, zeros, scales ``[groups, outputs]``, group size.
    """
    loaded, step = window_bytes(2 * bits, bits, 0), 2 * bits

    def decode(first, last, arguments):
        values, _, outputs, codes_at, length, offsets_at, zero_bytes, scales, _, _, group_size = numbers(11, arguments)
        codes, offsets = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(offsets_at), zero_bytes, np.uint8),
        )
        width = (outputs * bits + 7) // 8
        for column in range(first, last):
            group = column // group_size
            own, zero = column * width, group * width
            room = min(len(codes) - own, len(offsets) - zero)
            whole = max(0, min(outputs // LANES, (room - loaded) // step + 1))
            at, offset = codes_at + own, offsets_at + zero
            factors, target = scales + 4 * outputs * group, values + 4 * outputs * column
            for part in range(whole):
                steps = differences(bits, at + step * part, offset + step * part)
                store(times(steps, load(LANES, factors + PART * part)), target + PART * part)
            for output in range(whole * LANES, outputs):
                value = read_bits(codes, own * 8 + output * bits, bits) - read_bits(
                    offsets, zero * 8 + output * bits, bits
                )
                put_float(np.float32(value) * float_at(factors + 4 * output), target + 4 * output)

    return shared_loop(decode)


@lru_cache(maxsize=16)
def _product(bits: int) -> Any:
    """The loop that adds the product of one sample ``x [columns]`` to the sums of the parts ``first … last``.

    A part is 32 outputs. Its arguments: ``total`` (outputs padded to 32), ``x``, columns, codes, their bytes, zeros,
    their bytes, scales ``[groups, outputs]``, the bytes of each, groups, outputs, group size. Within a group the scale
    is the same for all inputs, so it is applied to the group's sum.
    """
    loaded, step = window_bytes(2 * bits, bits, 0), 2 * bits

    def multiply(first, last, arguments):
        total, x, columns, codes_at, length, offsets_at, zero_bytes, scales, size, groups, outputs, group_size = (
            numbers(12, arguments)
        )
        codes, offsets = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(offsets_at), zero_bytes, np.uint8),
        )
        width = (outputs * bits + 7) // 8
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
                left, count = 2 * LANES * part, min(2 * LANES, outputs - 2 * LANES * part)
                for place in range(count):
                    padded[place] = scale_at(scales + size * (outputs * group + left + place), size)
                target, factors = total + 4 * left, padded.ctypes.data
                store(add(load(LANES, target), times(a, load(LANES, factors))), target)
                store(add(load(LANES, target + PART), times(b, load(LANES, factors + PART))), target + PART)
                for column in range(inside, stop):  # where a window would reach beyond the codes
                    for output in range(left, left + count):
                        code = read_bits(codes, column * width * 8 + output * bits, bits)
                        value = code - read_bits(offsets, group * width * 8 + output * bits, bits)
                        product = np.float32(value) * padded[output - left] * float_at(x + 4 * column)
                        put_float(float_at(total + 4 * output) + product, total + 4 * output)

    return shared_loop(multiply)


@compiled(nogil=True)
def _add_gradients(grad, codes, zeros, bits, group_size, grad_scales):
    """Add to ``grad_scales [groups, outputs]``."""
    columns, outputs = grad.shape
    width = (outputs * bits + 7) // 8
    for column in range(columns):
        group = column // group_size
        own, zero = codes[column * width :], zeros[group * width :]
        for output in range(outputs):
            step = read_bits(own, output * bits, bits) - read_bits(zero, output * bits, bits)
            grad_scales[group, output] += grad[column, output] * step
