"""Trellis columns to values, or to gradients; compiled for one state size and rate.

Rates are in half bits here: a column of rate ``r`` ends its weight ``t`` with bit ``(t + 1) * r >> 1``. Where ``r`` is
odd, weights add ``k`` and ``k + 1`` bits in turn, and their two tables lie one after the other.

Decoding takes sixteen weights at a time. The first sixteen need the end of the circular stream before them, and the
last few may end where memory does: both go through a small buffer that holds their bytes as if they lay in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from vqcompress.formats import TrellisSpec
from vqcompress.kernels.cpu.arguments import byte_array, gradient_tensor, output_scale, rates_and_starts
from vqcompress.kernels.cpu.loops import (
    last_sixteen,
    numbers,
    raw_pointer,
    read_bits,
    run_blocks,
    shared_loop,
    wrapped_window,
)
from vqcompress.kernels.cpu.operations import Operations
from vqcompress.kernels.cpu.threads import parallel_for
from vqcompress.kernels.cpu.trellis_product import OUTPUTS, product_blocks
from vqcompress.kernels.cpu.trellis_tables import all_tables, formula_pair
from vqcompress.kernels.cpu.vectors import load, store, times
from vqcompress.kernels.cpu.windows import LANES, look_up, window_bytes
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.machine_code import compiled

EDGE = 34  # bytes of the small buffer: more than is ever loaded at once
DECODE_NUMBERS = 11  # of each rate's loop, its address included


def decode(values: Tensor, spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``values [columns, outputs]``."""
    columns, outputs = values.shape
    prepare(spec, tensors, outputs, columns)(values)


def prepare(spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> Callable[[Tensor], None]:
    """`decode` for later, without the tensors: as long as they are where they are and unchanged."""
    plan, scale = _decode_plan(spec, tensors, outputs, columns), _padded_scale(tensors["scale"], outputs)
    codes, factors, numbers = tensors["weight"].data_ptr(), scale.data_ptr(), [len(plan.blocks), DECODE_NUMBERS]
    for loop, length, starts, rates, table, stored in plan.blocks:
        numbers += (loop, 0, columns, outputs, codes, length, starts, rates, table, factors, stored)
    places, empty = range(3, len(numbers), DECODE_NUMBERS), plan.empty
    zeros = None if empty is None else 0 * scale[:outputs]

    def fill(values: Tensor, held: Any = (plan, scale)) -> None:
        if empty is not None:
            values[empty] = zeros
        own, out = numbers.copy(), values.data_ptr()
        for place in places:
            own[place] = out
        parallel_for(run_blocks, columns, columns * outputs, *own)

    return fill


@dataclass(frozen=True)
class _DecodePlan:
    """What is the same in every decoding of a weight.

    ``blocks``: for each rate the loop, bytes of codes, the addresses of starts, rates and value table, and the rate.
    ``empty`` says which columns have no bits, if there are any. ``held`` is what lies at the addresses.
    """

    blocks: tuple[tuple[int, int, int, int, int, int], ...]
    empty: Tensor | None
    held: tuple[Any, ...]


_PLANS: TensorCache[_DecodePlan] = TensorCache()
_SCALES: TensorCache[Tensor] = TensorCache()


def _decode_plan(spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> _DecodePlan:
    """Made once for a weight, and again when learned tables or rates change."""
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    changing = tensors["weight"] if spec.codebook is None else tensors["codebooks"]
    # The address of `rates` stands for them: the plan holds them.
    return _PLANS(changing, (spec, rates.ctypes.data), lambda: _make_plan(spec, tensors, outputs, rates, starts))


def _make_plan(
    spec: TrellisSpec, tensors: Mapping[str, Tensor], outputs: int, rates: np.ndarray, starts: np.ndarray
) -> _DecodePlan:
    tables, length = all_tables(spec, tensors), tensors["weight"].numel()
    blocks, owned, empty = [], [], np.zeros(len(rates), bool)
    for rate in np.unique(rates).tolist():
        if spec.column_bits(outputs, rate) == 0:
            empty |= rates == rate
            continue
        halves = spec.halves(rate)
        own = tables[halves // 2 : (halves + 3) // 2].ravel()
        if halves % 2 and not set(spec.codebook_rates) & {halves // 2, halves // 2 + 1}:
            own = formula_pair(spec.state_bits, spec.tail, halves // 2)
        owned.append(own)
        loop = _decoder(spec.state_bits, halves, own.itemsize).address
        blocks.append((loop, length, starts.ctypes.data, rates.ctypes.data, own.ctypes.data, rate))
    return _DecodePlan(tuple(blocks), torch.from_numpy(empty) if empty.any() else None, (rates, starts, owned))


def _padded_scale(scale: Tensor, outputs: int) -> Tensor:
    """A scale for each output, float32, zeros up to a multiple of `LANES`."""

    def make() -> Tensor:
        return torch.nn.functional.pad(scale.detach().float().expand(outputs), (0, -outputs % LANES))

    return _SCALES(scale, (scale.dtype, outputs), make)


def parameter_gradients(spec: TrellisSpec, tensors: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Gradients of ``scale`` and of learned tables; ``grad [columns, outputs]``."""
    columns, outputs = grad.shape
    rates, starts = rates_and_starts(spec, tensors, outputs, columns)
    tables, scale = all_tables(spec, tensors), output_scale(tensors["scale"], outputs)
    grad_tables, grad_scale = np.zeros(tables.shape), np.zeros(outputs)
    codes = byte_array(tensors["weight"])
    halves = rates * spec.halves(1)
    _add_gradients(grad.numpy(), codes, starts, halves, tables, spec.state_bits, scale, grad_tables, grad_scale)
    found = {"scale": gradient_tensor(grad_scale if spec.row_scales else grad_scale.sum(keepdims=True))}
    if spec.codebook is not None:
        found["codebooks"] = gradient_tensor(grad_tables[np.array(spec.codebook_rates, dtype=int)])
    return found


OPERATIONS = Operations(decode, lambda spec: OUTPUTS, product_blocks, parameter_gradients, prepare)


@compiled(inline="always")
def _fill_edge(edge, stream, rate, outputs, group):
    """Bytes of sixteen weights and the two before them; zeros beyond the column."""
    bits, first = outputs * rate >> 1, rate * group - 2
    for place in range(rate + 2):
        at = first + place
        edge[place] = stream[at] if at >= 0 and at * 8 < bits else 0
    if first < 0:
        last = last_sixteen(stream.ctypes.data, bits)
        edge[-first - 1] = last & np.uint64(255)
        if first == -2:
            edge[0] = last >> np.uint64(8)


@lru_cache(maxsize=64)
def _decoder(state_bits: int, rate: int, size: int) -> Any:
    """The loop that fills those of the columns ``first … last`` that have this rate.

    Its arguments: ``values [columns, outputs]``, codes, starts, rates, value tables of ``size`` bytes a value, scale
    (outputs padded to sixteen), the rate as it is stored.
    """
    loaded, direct = window_bytes(rate, state_bits, 2), -(-2 // rate)  # groups before that one need the circle's end

    def decode(first, last, arguments):
        out_at, columns, outputs, codes_at, length, starts_at, rates_at, table, scale, stored = numbers(10, arguments)
        codes, values = (
            carray(raw_pointer(codes_at), length, np.uint8),
            carray(raw_pointer(out_at), (columns, outputs), np.float32),
        )
        starts, rates = (
            carray(raw_pointer(starts_at), columns, np.int64),
            carray(raw_pointer(rates_at), columns, np.int64),
        )
        edge, sixteen = np.zeros(EDGE, np.uint8), np.empty(LANES, np.float32)
        for column in range(first, last):
            if rates[column] != stored:
                continue
            start, out = starts[column], values[column]
            at, target = codes_at + start, out_at + 4 * outputs * column
            inner = max(direct, min(outputs // LANES, (length - start + 2 - loaded) // rate + 1))
            for group in range(direct, inner):
                found = look_up(rate, state_bits, size, at + rate * group, table)
                store(times(found, load(LANES, scale + 4 * LANES * group)), target + 4 * LANES * group)
            group = 0
            while group * LANES < outputs:
                _fill_edge(edge, codes[start:], rate, outputs, group)
                found = look_up(rate, state_bits, size, edge.ctypes.data + 2, table)
                store(times(found, load(LANES, scale + 4 * LANES * group)), sixteen.ctypes.data)
                for output in range(min(LANES, outputs - LANES * group)):
                    out[LANES * group + output] = sixteen[output]
                group = inner if group == direct - 1 else group + 1

    return shared_loop(decode)


@compiled(inline="always")
def _state(stream, output, rate, outputs, state_bits):
    """The state of ``output`` in a circular stream: three bytes where the window lies inside of it, else bit by bit."""
    bits, stop = outputs * rate >> 1, (output + 1) * rate >> 1
    start = stop - state_bits
    if start < 0:
        return wrapped_window(stream, stop, bits, state_bits)
    if start + 24 > bits:
        return read_bits(stream, start, state_bits)
    at = start >> 3
    three = (np.int64(stream[at]) << 16) | (np.int64(stream[at + 1]) << 8) | np.int64(stream[at + 2])
    return (three >> (24 - state_bits - (start & 7))) & ((np.int64(1) << state_bits) - 1)


@compiled(nogil=True)
def _add_gradients(grad, codes, starts, rates, tables, state_bits, scale, grad_tables, grad_scale):
    """Add to ``grad_tables [max rate + 1, 2**state_bits]`` and ``grad_scale [outputs]``."""
    outputs = grad.shape[1]
    for column in range(len(rates)):
        rate = rates[column]
        if outputs * rate < 2:
            continue
        stream = codes[starts[column] :]
        for output in range(outputs):
            state = _state(stream, output, rate, outputs, state_bits)
            new_bits = ((output + 1) * rate >> 1) - (output * rate >> 1)
            grad_tables[new_bits, state] += grad[column, output] * scale[output]
            grad_scale[output] += grad[column, output] * tables[new_bits, state]
