"""Codewords of a fixed length added up in vector registers: numba intrinsics."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vqcompress.kernels.cpu_windows import element, splat


def _word(builder: Any, address: Any, dimension: int) -> Any:
    return builder.bitcast(address, ir.VectorType(ir.FloatType(), dimension).as_pointer())


@intrinsic(prefer_literal=True)
def begin_word(typing_context, dimension, books, at, out, row):
    """``out[row + i] = 0 + books[at + i]`` for ``i < dimension``; plus zero, since a sum that begins with -0 is 0."""

    def generate(context, builder, signature, arguments):
        _, books_, at_, out_, row_ = arguments
        size = dimension.literal_value
        word = builder.load(_word(builder, element(context, builder, books, books_, at_), size), align=4)
        nothing = ir.Constant(ir.VectorType(ir.FloatType(), size), [0.0] * size)
        target = _word(builder, element(context, builder, out, out_, row_), size)
        builder.store(builder.fadd(nothing, word), target, align=4)
        return context.get_dummy_value()

    return types.void(dimension, books, types.intp, out, types.intp), generate


@intrinsic(prefer_literal=True)
def add_word(typing_context, dimension, books, at, out, row):
    """``out[row + i] += books[at + i]`` for ``i < dimension``."""

    def generate(context, builder, signature, arguments):
        _, books_, at_, out_, row_ = arguments
        size = dimension.literal_value
        word = builder.load(_word(builder, element(context, builder, books, books_, at_), size), align=4)
        target = _word(builder, element(context, builder, out, out_, row_), size)
        builder.store(builder.fadd(builder.load(target, align=4), word), target, align=4)
        return context.get_dummy_value()

    return types.void(dimension, books, types.intp, out, types.intp), generate


@intrinsic(prefer_literal=True)
def scale_word(typing_context, dimension, scale, out, row):
    """``out[row + i] *= scale[row + i]`` for ``i < dimension``."""

    def generate(context, builder, signature, arguments):
        _, scale_, out_, row_ = arguments
        size = dimension.literal_value
        gain = builder.load(_word(builder, element(context, builder, scale, scale_, row_), size), align=4)
        target = _word(builder, element(context, builder, out, out_, row_), size)
        builder.store(builder.fmul(builder.load(target, align=4), gain), target, align=4)
        return context.get_dummy_value()

    return types.void(dimension, scale, out, types.intp), generate


@intrinsic(prefer_literal=True)
def multiply_add_word(typing_context, dimension, books, at, factor, total, row):
    """``total[row + i] += factor * books[at + i]`` for ``i < dimension``."""

    def generate(context, builder, signature, arguments):
        _, books_, at_, factor_, total_, row_ = arguments
        size = dimension.literal_value
        kind = ir.VectorType(ir.FloatType(), size)
        word = builder.load(_word(builder, element(context, builder, books, books_, at_), size), align=4)
        target = _word(builder, element(context, builder, total, total_, row_), size)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{size}f32"
        )
        sums = builder.call(multiply_add, [splat(builder, factor_, size), word, builder.load(target, align=4)])
        builder.store(sums, target, align=4)
        return context.get_dummy_value()

    return types.void(dimension, books, types.intp, types.float32, total, types.intp), generate
