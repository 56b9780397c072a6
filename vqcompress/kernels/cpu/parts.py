"""What C functions that threads run together find their arguments with, call one another, and take parts of the work."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vqcompress.kernels.cpu.loops import native
from vqcompress.kernels.cpu.vectors import pointer


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
    """Run parts until none are left. At ``job``: the next part's number, how many parts, over how many things, the loop's address,
    then its arguments. As many threads as like may run this with the same job."""
    _, parts, count, loop = numbers(4, job)
    part = _next(job)
    while part < parts:
        call(loop, count * part // parts, count * (part + 1) // parts, job + 32)
        part = _next(job)
