"""Triton kernels for the scalar format: a lane takes eight neighbouring weights of a column, ``bits`` whole bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.kernels.triton.device import DECODE_WARPS, LANES, OPTIONS, decode_programs, stored_bytes
from vqcompress.kernels.triton.operations import Launch, Operations


def _constants(spec: ScalarSpec, outputs: int) -> dict[str, Any]:
    return {"BITS": spec.bits, "SCALE_BITS": spec.scale_bits, "WHOLE_GROUPS": outputs % 8 == 0}


def _scales(spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scales as stored, and the factors of the outputs; where there are none, a tensor that is not read."""
    scales = tensors["group_scale"].detach()
    return (stored_bytes(scales), tensors["scale"].detach()) if spec.packed_scales else (scales, scales)


def decode(out: Tensor, codes: Tensor, spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``out [columns, outputs]``."""
    columns, outputs = out.shape
    decode_scalar[(decode_programs(columns, -(-outputs // 8)),)](
        out,
        codes,
        stored_bytes(tensors["group_zero"]),
        *_scales(spec, tensors),
        outputs,
        columns,
        spec.group_size,
        LANES=LANES,
        **_constants(spec, outputs),
        num_warps=DECODE_WARPS,
        **OPTIONS,
    )


def product(spec: ScalarSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> Launch:
    """What to launch for partial sums."""
    zeros, scales = stored_bytes(tensors["group_zero"]), _scales(spec, tensors)[0]
    return Launch(multiply_scalar, (zeros, scales, outputs, columns, spec.group_size), _constants(spec, outputs))


OPERATIONS = Operations(decode, product, lambda spec: 8)


@triton.jit
def _read_eight(column, group, inside, width, BITS: tl.constexpr, WHOLE_GROUPS: tl.constexpr):
    """Numbers ``8 * group …`` (int32 ``[lanes, 8]``) of the streams, ``width`` bytes each, at ``column`` (pointers)."""
    own = group * BITS
    word = tl.load(column + own, mask=inside, other=0).to(tl.uint32)
    if BITS > 4:
        word = word.to(tl.uint64)
    for index in tl.static_range(1, BITS):
        there = inside
        if not WHOLE_GROUPS:
            there = inside & (own + index < width)
        word = (word << 8) | tl.load(column + own + index, mask=there, other=0).to(word.dtype)
    place = tl.arange(0, 8)[None, :]
    return (word[:, None] >> ((7 - place) * BITS).to(word.dtype)).to(tl.int32) & ((1 << BITS) - 1)


@triton.jit
def scalar_values(
    codes,
    zeros,
    scales,
    column,
    group,
    inside,
    outputs,
    group_size,
    BITS: tl.constexpr,
    SCALE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
):
    """Weights ``[lanes, 8]`` (float32) of outputs ``8 * group …`` of columns ``column``; zero where not ``inside``.

    With packed scales (``SCALE_BITS`` below 16) the factors of the outputs are still to be applied.
    """
    width = (outputs * BITS + 7) >> 3
    block = column // group_size
    code = _read_eight(codes + column * width, group, inside, width, BITS, WHOLE_GROUPS)
    zero = _read_eight(zeros + block * width, group, inside, width, BITS, WHOLE_GROUPS)
    if SCALE_BITS == 16:
        output = group[:, None] * 8 + tl.arange(0, 8)[None, :]
        place = scales + block[:, None] * outputs + output
        factor = tl.load(place, mask=inside[:, None] & (output < outputs), other=0.0).to(tl.float32)
    else:
        scale_width = (outputs * SCALE_BITS + 7) >> 3
        factor = _read_eight(scales + block * scale_width, group, inside, scale_width, SCALE_BITS, WHOLE_GROUPS)
    return (code - zero).to(tl.float32) * factor.to(tl.float32)


@triton.jit
def decode_scalar(
    out,
    codes,
    zeros,
    scales,
    output_scales,
    outputs,
    columns,
    group_size,
    BITS: tl.constexpr,
    SCALE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """``out [columns, outputs]``, in its dtype: a program per ``LANES`` groups of eight weights."""
    groups = (outputs + 7) // 8
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    column = lane // groups
    group = lane - column * groups
    inside = column < columns
    values = scalar_values(
        codes, zeros, scales, column, group, inside, outputs, group_size, BITS, SCALE_BITS, WHOLE_GROUPS
    )
    output = group[:, None] * 8 + tl.arange(0, 8)[None, :]
    if SCALE_BITS != 16:
        values *= tl.load(output_scales + output, mask=output < outputs, other=0.0).to(tl.float32)
    tl.store(
        out + column[:, None] * outputs + output,
        values.to(out.dtype.element_ty),
        mask=inside[:, None] & (output < outputs),
    )


@triton.jit(do_not_specialize=["batch", "batch_stride", "column_stride"])
def multiply_scalar(
    partial,
    x,
    codes,
    zeros,
    scales,
    outputs,
    columns,
    group_size,
    batch,
    batch_stride,
    column_stride,
    columns_per_split,
    BITS: tl.constexpr,
    SCALE_BITS: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    BATCH: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """``partial [splits, batch, outputs]`` (float32): ``x [batch, columns]`` times a part of the columns each.

    The scales differ along the columns, so they go into the weights, as they do in a dense layer. Factors of the
    outputs are applied to the sums.
    """
    lane = tl.arange(0, DEPTH * GROUPS)
    group = tl.program_id(0) * GROUPS + lane % GROUPS
    example = tl.arange(0, BATCH)[:, None]
    left = tl.program_id(1) * columns_per_split
    right = tl.minimum(left + columns_per_split, columns)
    total = tl.zeros((BATCH, GROUPS * 8), dtype=tl.float32)
    for first in range(left, right, DEPTH):
        column = first + lane // GROUPS
        inside = (group * 8 < outputs) & (column < right)
        values = scalar_values(
            codes, zeros, scales, column, group, inside, outputs, group_size, BITS, SCALE_BITS, WHOLE_GROUPS
        )
        weights = tl.reshape(values, (DEPTH, GROUPS * 8)).to(PRODUCT)
        place = first + tl.arange(0, DEPTH)[None, :]
        wanted = (example < batch) & (place < right)
        inputs = tl.load(
            x + example.to(tl.int64) * batch_stride + place.to(tl.int64) * column_stride, mask=wanted, other=0.0
        )
        total = tl.dot(inputs.to(PRODUCT), weights, total, input_precision="ieee")
    output = tl.program_id(0) * GROUPS * 8 + tl.arange(0, GROUPS * 8)[None, :]
    at = (tl.program_id(1) * batch + example) * outputs + output
    tl.store(partial + at, total, mask=(example < batch) & (output < outputs))
