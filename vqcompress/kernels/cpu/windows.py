"""Sixteen bit fields of a stream at a time: numba intrinsics that fill vector registers.

Sixteen numbers of ``r`` half bits (field ``i`` ends with bit ``(i + 1) * r >> 1``) are ``r`` whole bytes, so the bytes
that each field needs and the shift that brings it down are constants. LLVM turns that into one byte permutation, one
shift by lanes, one mask and, for the trellis, one gather from the value table (AVX-512), or into whatever the processor
has.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from llvmlite.ir.instructions import GEPInstr
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vqcompress.kernels.cpu.vectors import Floats, pointer

LANES = 16
LEAD = 2  # bytes before the first number's own: a state reaches back less than 16 bits
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
# A gather of sixteen is faster than sixteen loads only in AVX-512; on Zen 3 it takes twice their time.
GATHERS = llvmlite.binding.get_host_cpu_features().get("avx512f", False)


def window_bytes(rate: int, length: int, lead: int) -> int:
    """Bytes, 16 or 32, that sixteen windows of ``length`` bits, ``rate`` half bits apart, are read from."""
    return 16 if ((_end(LANES - 1, rate, lead) - length) >> 3) + 4 <= 16 else 32


def _end(lane: int, rate: int, lead: int) -> int:
    """Bits before the end of a window."""
    return 8 * lead + ((lane + 1) * rate >> 1)


def _windows(builder: Any, base: Any, rate: int, length: int, lead: int) -> Any:
    """Windows ``<16 x i32>`` of ``length`` bits that end with each of sixteen numbers, ``lead`` bytes on."""
    size = window_bytes(rate, length, lead)
    block = ir.VectorType(ir.IntType(8), size)
    stream = builder.load(builder.bitcast(base, block.as_pointer()), align=1)
    places, shifts = [], []
    for lane in range(LANES):
        start = _end(lane, rate, lead) - length
        places += [(start >> 3) + place for place in (3, 2, 1, 0)]  # most significant first, on a little-endian machine
        shifts.append(32 - length - (start & 7))
    places = [min(place, size - 1) for place in places]  # a byte beyond is shifted out
    chosen = builder.shuffle_vector(stream, ir.Constant(block, ir.Undefined), _constant(places))
    words = builder.lshr(builder.bitcast(chosen, INTS), _constant(shifts))
    return builder.and_(words, _constant([(1 << length) - 1] * LANES))


def _constant(values: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)


def second_table(lane: int, rate: int, length: int) -> int:
    """Where the table of a weight begins: at half-integer rates every other one has the second."""
    return (lane & rate & 1) << length


def _gathered(builder: Any, table: Any, indices: Any, values: ir.VectorType, suffix: str, size: int) -> Any:
    """``table[indices]`` as ``values`` (``suffix`` is their type's name in LLVM), from elements of ``size`` bytes."""
    address = GEPInstr(builder.block, table, [indices], True, "", source_etype=ir.IntType(8 * size))
    address.type = pointers = ir.VectorType(table.type, LANES)
    builder._insert(address)
    mask = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(values, [pointers, ir.IntType(32), mask, values])
    gather = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.gather.v16{suffix}.v16p0")
    every = ir.Constant(mask, [1] * LANES)
    return builder.call(gather, [address, ir.Constant(ir.IntType(32), size), every, ir.Constant(values, ir.Undefined)])


def _gathered_halves(builder: Any, table: Any, indices: Any) -> Any:
    """``table[indices]`` of a table of float16: a gather reads the value after each as well, and drops it."""
    pairs = _gathered(builder, table, indices, INTS, "i32", 2)
    low = builder.trunc(pairs, ir.VectorType(ir.IntType(16), LANES))
    return builder.fpext(builder.bitcast(low, ir.VectorType(ir.HalfType(), LANES)), FLOATS)


def _looked_up(builder: Any, table: Any, base: Any, rate: int, length: int, lead: int) -> Any:
    """The same, one load after the other; windows that one word of 64 bits covers share it."""
    kind, wide, origin = table.type.pointee, ir.IntType(64), -64
    values = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
    for lane in range(LANES):
        end = _end(lane, rate, lead)
        if end > origin + 64:
            origin = 8 * min((end - length) >> 3, window_bytes(rate, length, lead) - 8)
            address = builder.gep(base, [wide(origin >> 3)], source_etype=ir.IntType(8))
            word = builder.bswap(builder.load(builder.bitcast(address, wide.as_pointer()), align=1))
        state = builder.and_(builder.lshr(word, wide(origin + 64 - end)), wide((1 << length) - 1))
        own = builder.gep(table, [wide(second_table(lane, rate, length))], source_etype=kind)
        value = builder.load(builder.gep(own, [state], inbounds=True, source_etype=kind), align=2)
        values = builder.insert_element(values, value, ir.IntType(32)(lane))
    return values if kind == ir.FloatType() else builder.fpext(values, FLOATS)


@intrinsic(prefer_literal=True)
def look_up(typing_context, rate, length, size, codes, table):
    """``table[window i]`` as sixteen floats, for windows of ``length`` bits, ``rate`` half bits apart.

    ``codes``, where the first field is, and ``table`` are addresses. Where ``rate`` is odd, two tables lie there: for
    the fields with fewer bits, which come first, and for those with more. Values have ``size`` bytes: 4, or 2 for
    float16, with one more value after the last.
    """

    def generate(context, builder, signature, arguments):
        step, bits = (kind.literal_value for kind in signature.args[:2])
        halves = signature.args[2].literal_value == 2
        base = pointer(builder, builder.sub(arguments[3], arguments[3].type(LEAD)), ir.IntType(8))
        values = pointer(builder, arguments[4], ir.HalfType() if halves else ir.FloatType())
        if GATHERS:
            states = _windows(builder, base, step, bits, LEAD)
            if step & 1:
                states = builder.or_(states, _constant([second_table(lane, step, bits) for lane in range(LANES)]))
            if halves:
                return _gathered_halves(builder, values, states)
            return _gathered(builder, values, states, FLOATS, "f32", 4)
        return _looked_up(builder, values, base, step, bits, LEAD)

    return Floats(LANES)(rate, length, size, types.intp, types.intp), generate


@intrinsic(prefer_literal=True)
def differences(typing_context, bits, codes, offsets):
    """``code i - offset i`` as sixteen floats: numbers of ``bits`` bits at the addresses ``codes`` and ``offsets``."""

    def generate(context, builder, signature, arguments):
        count, byte = signature.args[0].literal_value, ir.IntType(8)
        code, offset = (_windows(builder, pointer(builder, a, byte), 2 * count, count, 0) for a in arguments[1:])
        return builder.sitofp(builder.sub(code, offset), FLOATS)

    return Floats(LANES)(bits, types.intp, types.intp), generate
