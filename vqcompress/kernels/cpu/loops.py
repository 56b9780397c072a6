"""What the loops of all formats share: how they are called, bit fields, rates, and the frame of a product.

The loops are C functions of addresses, which any thread can call without the interpreter
(`vqcompress.kernels.cpu.threads`). No fast-math: products and sums round as in the reference, so the results are equal
bit for bit.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vqcompress.kernels.cpu.vectors import byte_at, float_at, half_at, pointer, put_float
from vqcompress.machine_code import compiled, native

HEAD_NUMBERS, BLOCK_NUMBERS = 9, 13  # of a product, and of each of its blocks


# (first, last, the address of what `vqcompress.kernels.cpu.threads.parallel_for` was given)
shared_loop = native("void(intp, intp, intp)")


@compiled(inline="always")
def read_bits(stream, start, count):
    """``count`` bits from bit ``start`` on, most significant first."""
    value = np.int64(0)
    for bit in range(start, start + count):
        value = (value << 1) | ((np.int64(stream[bit >> 3]) >> (7 - (bit & 7))) & 1)
    return value


@compiled()
def unpack_rates(packed, columns, min_rate, rate_bits):
    """Rates of all columns, int64 ``[columns]``."""
    rates = np.empty(columns, np.int64)
    for column in range(columns):
        rates[column] = min_rate + read_bits(packed, column * rate_bits, rate_bits)
    return rates


@compiled()
def column_starts(rates, column_bits):
    """First byte of each column. Columns lie by rate, then by index; ``column_bits[rate]`` is a column's length."""
    starts = np.empty(len(rates), np.int64)
    at = 0
    for rate in range(len(column_bits)):
        size = (column_bits[rate] + 7) // 8
        for column in range(len(rates)):
            if rates[column] == rate:
                starts[column] = at
                at += size
    return starts


@compiled(inline="always")
def wrapped_window(stream, stop, bits, count):
    """The ``count`` bits before bit ``stop`` of a circular stream of ``bits`` bits."""
    value = np.int64(0)
    for bit in range(stop - count, stop):
        at = bit % bits
        value = (value << 1) | ((np.int64(stream[at >> 3]) >> (7 - (at & 7))) & 1)
    return value


@compiled(inline="always")
def last_sixteen(address, bits):
    """The last sixteen bits of the circle of ``bits`` bits at ``address``."""
    if bits < 24:
        return _wrapped_sixteen(address, bits)
    at = address + ((bits - 1) >> 3)
    three = (byte_at(at - 2) << 16) | (byte_at(at - 1) << 8) | byte_at(at)
    return np.uint64((three >> (7 - ((bits - 1) & 7))) & 0xFFFF)


@compiled(inline="always")
def _wrapped_sixteen(address, bits):
    """The same for a circle that may be shorter than that."""
    value = np.int64(0)
    for place in range(-16, 0):
        at = place % bits
        value = (value << 1) | ((byte_at(address + (at >> 3)) >> (7 - (at & 7))) & 1)
    return np.uint64(value)


@intrinsic(prefer_literal=True)
def numbers(typing_context, count, address):
    """The ``count`` int64 numbers at ``address``."""

    def generate(context, builder, signature, arguments):
        kind = signature.return_type
        base = pointer(builder, arguments[1], ir.IntType(64))
        places = [builder.gep(base, [ir.IntType(64)(i)], source_etype=ir.IntType(64)) for i in range(kind.count)]
        return context.make_tuple(builder, kind, [builder.load(place, align=8) for place in places])

    return types.UniTuple(types.intp, count.literal_value)(count, types.intp), generate


@intrinsic
def raw_pointer(typing_context, address):
    """``address`` as `numba.carray` takes it."""

    def generate(context, builder, signature, arguments):
        return pointer(builder, arguments[0], ir.IntType(8))

    return types.voidptr(types.intp), generate


@intrinsic
def _next(typing_context, address):
    """The int64 at ``address``, which goes up by one; no two threads get the same."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(64)
        return builder.atomic_rmw("add", pointer(builder, arguments[0], number), number(1), "monotonic")

    return types.intp(types.intp), generate


@intrinsic
def call(typing_context, loop, first, last, arguments):
    """``loop(first, last, arguments)`` for the C function at the address ``loop``."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(64)
        loop = pointer(builder, arguments[0], ir.FunctionType(ir.VoidType(), [number] * 3))
        builder.call(loop, arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@native("void(intp)")
def take_parts(job):
    """Run parts until none are left. Any number of threads may run this with the same job.

    At ``job``: the next part's number, how many parts, over how many items, the loop's address, then its arguments.
    """
    _, parts, count, loop = numbers(4, job)
    part = _next(job)
    while part < parts:
        call(loop, count * part // parts, count * (part + 1) // parts, job + 32)
        part = _next(job)


@shared_loop
def run_blocks(first, last, arguments):
    """Several loops over ``first … last``, one after the other.

    The arguments: how many, the numbers that each takes here; then for each the address of its loop and its arguments.
    """
    blocks, width = numbers(2, arguments)
    for block in range(blocks):
        at = arguments + 16 + 8 * width * block
        (loop,) = numbers(1, at)
        call(loop, first, last, at + 8)


@compiled(inline="always")
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
def sample_product(first, last, arguments):
    """``y = total * scale + bias`` over parts of ``unit`` outputs, for one sample.

    The arguments: ``y``, outputs, ``total`` (padded), ``unit``, ``scale`` (0: none), how many scales (one, or one for
    each output), the bytes of each, ``bias`` (0: none), blocks. Each block's loop adds to ``total``: its address and
    its arguments, padded to twelve, follow block by block.
    """
    y, outputs, total, unit, scale, scales, size, bias, blocks = numbers(9, arguments)
    for output in range(first * unit, last * unit):
        put_float(np.float32(0), total + 4 * output)
    for block in range(blocks):
        at = arguments + 8 * (HEAD_NUMBERS + BLOCK_NUMBERS * block)
        (loop,) = numbers(1, at)
        call(loop, first, last, at + 8)
    for output in range(first * unit, min(last * unit, outputs)):
        value = float_at(total + 4 * output)
        if scale != 0:
            value *= scale_at(scale + (size * output if scales > 1 else 0), size)
        if bias != 0:
            value += float_at(bias + 4 * output)
        put_float(value, y + 4 * output)
