"""Triton kernel: partial products to outputs, the scale applied last, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["batch", "splits"])
def finish(
    y,
    partial,
    scale,
    bias,
    outputs,
    batch,
    splits,
    SCALE_STRIDE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``y [batch, outputs] = (sum of partial [splits, batch, outputs]) * scale + bias``.

    A program per example and ``BLOCK`` outputs.
    """
    example = tl.program_id(1)
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = output < outputs
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(partial + (split * batch + example) * outputs + output, mask=inside, other=0.0)
    if HAS_SCALE:
        total *= tl.load(scale + output * SCALE_STRIDE, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + example * outputs + output, total.to(y.dtype.element_ty), mask=inside)
