"""Loops over decoded columns: the output rotation undone, column scales, and the weight turned around.

No fast-math: every sum and product rounds as in `vqcompress.formats.rotation`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vqcompress.kernels.cpu.loops import numbers, shared_loop
from vqcompress.kernels.cpu.vectors import add, float_at, load, minus, pointer, put_float, scaled, store, times
from vqcompress.machine_code import compiled

TILE = 16
STEP = 4 * TILE  # bytes


def _places(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), TILE), places)


@intrinsic
def _hadamard(typing_context, vector):
    """The unnormalised Walsh-Hadamard transform of sixteen floats."""

    def generate(context, builder, signature, arguments):
        (values,) = arguments
        for span in (1, 2, 4, 8):
            other = builder.shuffle_vector(values, values, _places([place ^ span for place in range(TILE)]))
            # A sum in the first place of a pair, first minus second in the other.
            sums, differences = builder.fadd(values, other), builder.fsub(other, values)
            chosen = [place + TILE if place & span else place for place in range(TILE)]
            values = builder.shuffle_vector(sums, differences, _places(chosen))
        return values

    return vector(vector), generate


@compiled(inline="always")
def _transform(start, block):
    """The unnormalised Walsh-Hadamard transform of ``block`` floats at ``start``, fewer than sixteen."""
    span = 4
    while span < 4 * block:
        for pair in range(start, start + 4 * block, 2 * span):
            for place in range(pair, pair + span, 4):
                first, second = float_at(place), float_at(place + span)
                put_float(first + second, place)
                put_float(first - second, place + span)
        span *= 2


@compiled(inline="always")
def _transform_tiles(start, block):
    """The same of sixteen floats or a multiple."""
    for place in range(start, start + 4 * block, STEP):
        store(_hadamard(load(TILE, place)), place)
    span = STEP
    while span < 4 * block:
        for pair in range(start, start + 4 * block, 2 * span):
            for place in range(pair, pair + span, STEP):
                first, second = load(TILE, place), load(TILE, place + span)
                store(add(first, second), place)
                store(minus(first, second), place + span)
        span *= 2


@shared_loop
def finish_columns(first, last, arguments):
    """Columns ``first … last`` of ``values [columns, outputs]``, in place.

    The arguments: ``values``, outputs, the rotation's block (0: none), its signs times its norm, column factors (0:
    none).
    """
    values, outputs, block, signs, factors = numbers(5, arguments)
    whole = outputs - outputs % TILE
    for column in range(first, last):
        at = values + 4 * outputs * column
        if block != 0:
            for start in range(at, at + 4 * outputs, 4 * block):
                if block < TILE:
                    _transform(start, block)
                else:
                    _transform_tiles(start, block)
            for place in range(0, 4 * whole, STEP):
                store(times(load(TILE, at + place), load(TILE, signs + place)), at + place)
            for place in range(4 * whole, 4 * outputs, 4):
                put_float(float_at(at + place) * float_at(signs + place), at + place)
        if factors != 0:
            factor = float_at(factors + 4 * column)
            for place in range(at, at + 4 * whole, STEP):
                store(scaled(load(TILE, place), factor), place)
            for place in range(at + 4 * whole, at + 4 * outputs, 4):
                put_float(float_at(place) * factor, place)


@intrinsic
def _turn_tile(typing_context, source, source_step, target, target_step):
    """Sixteen rows of sixteen floats at ``source``, ``source_step`` bytes apart, to the columns of those at ``target``.

    Four rounds, each of which exchanges blocks of half the size between pairs of rows (Eklundh 1972).
    """

    def generate(context, builder, signature, arguments):
        source_, source_step_, target_, target_step_ = arguments
        kind = ir.VectorType(ir.FloatType(), TILE)

        def row(base: Any, step: Any, index: int) -> Any:
            return pointer(builder, builder.add(base, builder.mul(step, step.type(index))), kind)

        rows = [builder.load(row(source_, source_step_, index), align=4) for index in range(TILE)]
        span = TILE // 2
        while span:
            low = [place - span + TILE if place & span else place for place in range(TILE)]
            high = [place + TILE if place & span else place + span for place in range(TILE)]
            for index in range(TILE):
                if not index & span:
                    pair = rows[index], rows[index + span]
                    rows[index] = builder.shuffle_vector(*pair, _places(low))
                    rows[index + span] = builder.shuffle_vector(*pair, _places(high))
            span //= 2
        for index in range(TILE):
            builder.store(rows[index], row(target_, target_step_, index), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@shared_loop
def turn_columns(first, last, arguments):
    """``turned [outputs, columns]`` from ``values [columns, outputs]``, for tiles ``first … last`` of columns.

    The arguments: ``values``, ``turned``, columns, outputs.
    """
    values, turned, columns, outputs = numbers(4, arguments)
    for tile in range(first, last):
        begin, end = tile * TILE, min(tile * TILE + TILE, columns)
        whole = outputs - outputs % TILE if end - begin == TILE else 0
        for output in range(0, whole, TILE):
            source, target = values + 4 * (outputs * begin + output), turned + 4 * (columns * output + begin)
            _turn_tile(source, 4 * outputs, target, 4 * columns)
        for output in range(whole, outputs):
            for column in range(begin, end):
                put_float(float_at(values + 4 * (outputs * column + output)), turned + 4 * (columns * output + column))
