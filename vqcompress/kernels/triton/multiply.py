"""A few rows of inputs times packed weights on a GPU: only the codes are read, nothing dense is written.

The columns are split over programs, so that small layers fill the GPU too; their partial sums, float32, meet in a second
kernel that applies the scale. Sums are taken in a fixed order: the same input gives the same output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels.column_order import column_order
from vqcompress.kernels.triton import decode as triton_decode
from vqcompress.kernels.triton.decode import additive_constants, scalar_constants, trellis_constants
from vqcompress.kernels.triton.device import OPTIONS, is_interpreted, processors, stored_bytes
from vqcompress.kernels.triton.value_tables import value_tables
from vqcompress.matrix_view import Shape, matrix_shape

PURPOSE = "few rows: reads the codes alone and writes no dense weight"
MOST_ROWS = 32
OUTPUTS = 128  # of a program
DEPTH = 32  # columns that a program decodes at a time
WARPS = 8
STAGES = 2  # more would hold more memory than registers leave programs to use
PROGRAMS_PER_PROCESSOR = 2
FINISH_BLOCK = 256


def unsupported_reason(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    if not x.is_floating_point() or len(shape) != 2:
        return "only products with a matrix"
    if (count := x.numel() // max(1, x.shape[-1])) > MOST_ROWS:
        return f"{count} rows, more than {MOST_ROWS}"
    if isinstance(spec, AdditiveSpec) and spec.dimension not in (2, 4, 8, 16):
        return f"vectors of {spec.dimension} weights, not of 2, 4, 8 or 16"
    return triton_decode.unsupported_reason(spec, shape, x)


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., rows]`` in the dtype of ``x``."""
    rows, columns = matrix_shape(shape)
    flat = x.detach().reshape(-1, columns)
    y = x.new_empty(*x.shape[:-1], rows)
    if y.numel():
        with torch.cuda.device_of(x):
            _finish(y, _partial(flat, spec, rows, tensors), spec, tensors, bias)
    return y


def _partial(x: Tensor, spec: FormatSpec, rows: int, tensors: Mapping[str, Tensor]) -> Tensor:
    batch, columns = x.shape
    tiles = -(-rows // OUTPUTS)
    per_split = columns_per_split(columns, tiles, processors(x.device))
    splits = -(-columns // per_split)
    partial = torch.empty(splits, batch, rows, device=x.device)
    dimension = spec.dimension if isinstance(spec, AdditiveSpec) else 8
    kernel, arguments, constants = _kernel(spec, rows, columns, tensors)
    kernel[(tiles, splits)](
        partial,
        x,
        stored_bytes(tensors["weight"]),
        *arguments,
        batch=batch,
        batch_stride=x.stride(0),
        column_stride=x.stride(1),
        columns_per_split=per_split,
        BATCH=16 if batch <= 16 else MOST_ROWS,
        GROUPS=OUTPUTS // dimension,
        DEPTH=DEPTH,
        PRODUCT=product_type(x.dtype),
        **constants,
        num_warps=WARPS,
        num_stages=STAGES,
        **OPTIONS,
    )
    return partial


def columns_per_split(columns: int, tiles: int, processors: int) -> int:
    """A multiple of `DEPTH` that gives every processor its share of programs, and no program less than one step."""
    wanted = -(-PROGRAMS_PER_PROCESSOR * processors // tiles)
    steps = -(-columns // DEPTH)
    return DEPTH * max(1, -(-steps // wanted))


def product_type(dtype: torch.dtype) -> Any:
    """Triton's type that inputs and weights are multiplied in: the inputs' own (the interpreter knows no bfloat16 products)."""
    import triton.language as tl

    if dtype == torch.float32 or (dtype == torch.bfloat16 and is_interpreted()):
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


def _kernel(
    spec: FormatSpec, rows: int, columns: int, tensors: Mapping[str, Tensor]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The kernel of the format, its arguments between the codes and the batch, and its constants."""
    if isinstance(spec, TrellisSpec):
        from vqcompress.kernels.triton.trellis_multiply import multiply_trellis

        order = column_order(spec, columns, tensors)
        arguments = (order.columns, order.ends, value_tables(spec, tensors), rows, columns)
        return multiply_trellis, arguments, trellis_constants(spec, rows)
    if isinstance(spec, AdditiveSpec):
        from vqcompress.kernels.triton.additive_multiply import multiply_additive

        order = column_order(spec, columns, tensors)
        arguments = (order.columns, order.ends, tensors["codebooks"].detach(), rows, columns)
        return multiply_additive, arguments, additive_constants(spec)
    assert isinstance(spec, ScalarSpec)
    from vqcompress.kernels.triton.scalar import multiply_scalar

    zeros, scales = stored_bytes(tensors["group_zero"]), tensors["group_scale"].detach()
    return multiply_scalar, (zeros, scales, rows, columns, spec.group_size), scalar_constants(spec, rows)


def _finish(y: Tensor, partial: Tensor, spec: FormatSpec, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
    from vqcompress.kernels.triton.finish import finish

    splits, batch, rows = partial.shape
    scale = tensors.get("scale")
    finish[(-(-rows // FINISH_BLOCK), batch)](
        y,
        partial,
        partial if scale is None else scale.detach(),
        partial if bias is None else bias.detach(),
        rows,
        batch,
        splits,
        SCALE_STRIDE=0 if scale is None or scale.numel() == 1 else 1,
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        BLOCK=FINISH_BLOCK,
        **OPTIONS,
    )
