"""Short float vectors as numba values, so that sums stay in registers: a type, and intrinsics on it.

An ``address`` is an integer, as ``array.ctypes.data`` and ``Tensor.data_ptr()`` give it; lengths are compiled in.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model


class Floats(types.Type):
    """``count`` float32 numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"Floats({count})")


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Floats) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.count))


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """``address``, an integer, as a pointer to ``kind``."""
    return builder.inttoptr(address, kind.as_pointer())


def splat(builder: Any, value: Any, count: int) -> Any:
    """A vector of ``count`` floats that are all ``value``."""
    kind, places = ir.VectorType(ir.FloatType(), count), ir.VectorType(ir.IntType(32), count)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), ir.Constant(places, [0] * count))


def fused(builder: Any, left: Any, right: Any, total: Any) -> Any:
    """``left * right + total``, in one instruction where the processor has it."""
    suffix = f"v{left.type.count}f32" if isinstance(left.type, ir.VectorType) else "f32"
    kind = ir.FunctionType(left.type, [left.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.{suffix}")
    return builder.call(function, [left, right, total])


@intrinsic(prefer_literal=True)
def zeros(typing_context, count):
    """A vector of ``count`` zeros."""

    def generate(context, builder, signature, arguments):
        size = signature.return_type.count
        return ir.Constant(ir.VectorType(ir.FloatType(), size), [0.0] * size)

    return Floats(count.literal_value)(count), generate


@intrinsic(prefer_literal=True)
def load(typing_context, count, address):
    """The ``count`` floats at ``address``."""

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(ir.FloatType(), signature.return_type.count)
        return builder.load(pointer(builder, arguments[1], kind), align=4)

    return Floats(count.literal_value)(count, types.intp), generate


@intrinsic
def store(typing_context, vector, address):
    """Write ``vector`` to ``address``."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[0], pointer(builder, arguments[1], arguments[0].type), align=4)
        return context.get_dummy_value()

    return types.void(vector, types.intp), generate


@intrinsic
def add(typing_context, left, right):
    """``left + right``."""

    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return left(left, right), generate


@intrinsic
def minus(typing_context, left, right):
    """``left - right``."""

    def generate(context, builder, signature, arguments):
        return builder.fsub(*arguments)

    return left(left, right), generate


@intrinsic
def times(typing_context, left, right):
    """``left * right``."""

    def generate(context, builder, signature, arguments):
        return builder.fmul(*arguments)

    return left(left, right), generate


@intrinsic
def scaled(typing_context, vector, factor):
    """``vector * factor`` for a single ``factor``."""

    def generate(context, builder, signature, arguments):
        return builder.fmul(arguments[0], splat(builder, arguments[1], arguments[0].type.count))

    return vector(vector, types.float32), generate


@intrinsic
def multiply_add(typing_context, vector, factor, total):
    """``vector * factor + total`` for a single ``factor``."""

    def generate(context, builder, signature, arguments):
        vector_, factor_, total_ = arguments
        return fused(builder, vector_, splat(builder, factor_, vector_.type.count), total_)

    return vector(vector, types.float32, vector), generate


@intrinsic
def float_at(typing_context, address):
    """The float at ``address``."""

    def generate(context, builder, signature, arguments):
        return builder.load(pointer(builder, arguments[0], ir.FloatType()), align=4)

    return types.float32(types.intp), generate


@intrinsic
def half_at(typing_context, address):
    """The float16 at ``address``, as a float."""

    def generate(context, builder, signature, arguments):
        half = builder.load(pointer(builder, arguments[0], ir.HalfType()), align=2)
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.intp), generate


@intrinsic
def byte_at(typing_context, address):
    """The byte at ``address``, as an int64."""

    def generate(context, builder, signature, arguments):
        byte = builder.load(pointer(builder, arguments[0], ir.IntType(8)), align=1)
        return builder.zext(byte, ir.IntType(64))

    return types.intp(types.intp), generate


@intrinsic
def word_at(typing_context, address):
    """The eight bytes at ``address``, most significant first."""

    def generate(context, builder, signature, arguments):
        return builder.bswap(builder.load(pointer(builder, arguments[0], ir.IntType(64)), align=1))

    return types.uint64(types.intp), generate


@intrinsic
def put_float(typing_context, value, address):
    """Write the float ``value`` to ``address``."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[0], pointer(builder, arguments[1], ir.FloatType()), align=4)
        return context.get_dummy_value()

    return types.void(types.float32, types.intp), generate


@intrinsic
def fetch_ahead(typing_context, address):
    """Ask for the cache line at ``address``, which need not exist, to be brought near."""

    def generate(context, builder, signature, arguments):
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        reading, second_cache, data = number(0), number(2), number(1)
        builder.call(function, [pointer(builder, arguments[0], ir.IntType(8)), reading, second_cache, data])
        return context.get_dummy_value()

    return types.void(types.intp), generate
