"""Sixteen bit fields of a stream at a time: numba intrinsics that fill vector registers.

Sixteen numbers of ``k`` bits are ``2 * k`` whole bytes, so the bytes that each field needs and the shift that brings it down are
constants. LLVM turns that into one byte permutation, one shift by lanes, one mask and, for the trellis, one gather from the value
table (AVX-512), or into whatever the processor has; loops over single weights come out two to ten times slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.ir.instructions import GEPInstr
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
LEAD = 2  # bytes before the first number's own: a state reaches back less than 16 bits
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)


def window_bytes(rate: int, length: int, lead: int) -> int:
    """Bytes that sixteen windows of ``length`` bits, ``rate`` bits apart, are read from; 16 or 32, whatever of them is used."""
    return 16 if _first_byte(LANES - 1, rate, length, lead) + 4 <= 16 else 32


def _first_byte(lane: int, rate: int, length: int, lead: int) -> int:
    return (8 * lead + (lane + 1) * rate - length) >> 3


def _windows(builder: Any, base: Any, rate: int, length: int, lead: int) -> Any:
    """Windows ``<16 x i32>`` of ``length`` bits that end with each of the sixteen numbers; ``base`` lies ``lead`` bytes before them."""
    size = window_bytes(rate, length, lead)
    block = ir.VectorType(ir.IntType(8), size)
    stream = builder.load(builder.bitcast(base, block.as_pointer()), align=1)
    places, shifts = [], []
    for lane in range(LANES):
        first = _first_byte(lane, rate, length, lead)
        places += [first + 3, first + 2, first + 1, first]  # most significant byte first, on a little-endian machine
        shifts.append(32 - length - ((8 * lead + (lane + 1) * rate - length) & 7))
    places = [min(place, size - 1) for place in places]  # a byte beyond is shifted out
    chosen = builder.shuffle_vector(stream, ir.Constant(block, ir.Undefined), _constant(places))
    words = builder.lshr(builder.bitcast(chosen, INTS), _constant(shifts))
    return builder.and_(words, _constant([(1 << length) - 1] * LANES))


def _constant(values: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)


def _gathered(builder: Any, table: Any, indices: Any) -> Any:
    """``table[indices]``, ``<16 x float>``."""
    pointers = ir.VectorType(table.type, LANES)
    address = GEPInstr(builder.block, table, [indices], True, "", source_etype=ir.FloatType())
    address.type = pointers
    builder._insert(address)
    mask = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(FLOATS, [pointers, ir.IntType(32), mask, FLOATS])
    gather = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.gather.v16f32.v16p0")
    every = ir.Constant(mask, [1] * LANES)
    return builder.call(gather, [address, ir.Constant(ir.IntType(32), 4), every, ir.Constant(FLOATS, ir.Undefined)])


def element(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Address of ``array[index]`` of a one-dimensional contiguous array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index], inbounds=True, source_etype=context.get_data_type(kind.dtype))


def _load(builder: Any, address: Any) -> Any:
    return builder.load(builder.bitcast(address, FLOATS.as_pointer()), align=4)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.bitcast(address, FLOATS.as_pointer()), align=4)


def splat(builder: Any, value: Any, count: int = LANES) -> Any:
    """A vector of ``count`` floats that are all ``value``."""
    kind = ir.VectorType(ir.FloatType(), count)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), _constant([0] * count))


@intrinsic(prefer_literal=True)
def look_up_scaled(typing_context, rate, length, codes, at, table, scale, out, row):
    """``out[row + i] = table[window i] * scale[row + i]``, windows of ``length`` bits ``rate`` apart, the numbers at byte ``at``."""

    def generate(context, builder, signature, arguments):
        _, _, codes_, at_, table_, scale_, out_, row_ = arguments
        kinds = signature.args
        base = element(context, builder, kinds[2], codes_, builder.sub(at_, ir.Constant(at_.type, LEAD)))
        states = _windows(builder, base, rate.literal_value, length.literal_value, LEAD)
        start = element(context, builder, kinds[4], table_, ir.Constant(at_.type, 0))
        gain = _load(builder, element(context, builder, kinds[5], scale_, row_))
        _store(
            builder,
            builder.fmul(_gathered(builder, start, states), gain),
            element(context, builder, kinds[6], out_, row_),
        )
        return context.get_dummy_value()

    return types.void(rate, length, codes, types.intp, table, scale, out, types.intp), generate


@intrinsic(prefer_literal=True)
def look_up_add(typing_context, rate, length, codes, at, table, factor, total, row):
    """``total[row + i] += factor * table[window i]``, else as `look_up_scaled`."""

    def generate(context, builder, signature, arguments):
        _, _, codes_, at_, table_, factor_, total_, row_ = arguments
        kinds = signature.args
        base = element(context, builder, kinds[2], codes_, builder.sub(at_, ir.Constant(at_.type, LEAD)))
        states = _windows(builder, base, rate.literal_value, length.literal_value, LEAD)
        start = element(context, builder, kinds[4], table_, ir.Constant(at_.type, 0))
        where = element(context, builder, kinds[6], total_, row_)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fmuladd.v16f32"
        )
        values = _gathered(builder, start, states)
        _store(builder, builder.call(multiply_add, [splat(builder, factor_), values, _load(builder, where)]), where)
        return context.get_dummy_value()

    return types.void(rate, length, codes, types.intp, table, types.float32, total, types.intp), generate


@intrinsic(prefer_literal=True)
def differences_scaled(typing_context, bits, codes, at, zeros, zeros_at, scale, scale_at, out, row):
    """``out[row + i] = (code i - zero i) * scale[scale_at + i]``: numbers of ``bits`` bits at bytes ``at`` and ``zeros_at``."""

    def generate(context, builder, signature, arguments):
        _, codes_, at_, zeros_, zeros_at_, scale_, scale_at_, out_, row_ = arguments
        kinds, count = signature.args, bits.literal_value
        code = _windows(builder, element(context, builder, kinds[1], codes_, at_), count, count, 0)
        zero = _windows(builder, element(context, builder, kinds[3], zeros_, zeros_at_), count, count, 0)
        steps = builder.sitofp(builder.sub(code, zero), FLOATS)
        gain = _load(builder, element(context, builder, kinds[5], scale_, scale_at_))
        _store(builder, builder.fmul(steps, gain), element(context, builder, kinds[7], out_, row_))
        return context.get_dummy_value()

    return types.void(bits, codes, types.intp, zeros, types.intp, scale, types.intp, out, types.intp), generate
