"""The GPU's kernels: packed codes to a dense ``Wᵀ``, or straight into a product of few samples.

Decoding: the dense weight is a fresh allocation. Torch hands the memory of one layer's to the next, on the stream that
uses it, so what a model needs is one dense layer, and a CUDA graph keeps no more than that either.

Products: only the codes are read, nothing dense is written. The columns are split over programs, so that small layers
fill the GPU too; their partial sums, float32, meet in a second kernel that applies the scale. Sums are taken in a fixed
order: the same input gives the same output.

What differs between formats is in `OPERATIONS`, a file per format. Those files import triton, at the first launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels.kernel import Case, is_interpreted
from vqcompress.kernels.lengths import check_input, check_lengths
from vqcompress.kernels.triton.device import (
    OPTIONS,
    device_unsupported_reason,
    processors,
    product_device_unsupported_reason,
    size_unsupported_reason,
    stored_bytes,
)
from vqcompress.matrix_view import Shape, matrix_shape

MOST_SAMPLES = 32  # of a product straight from the codes
OUTPUTS = 128  # of a product's program
DEPTH = 32  # columns that it decodes at a time
WARPS = 8
STAGES = 2  # more would hold more memory than registers leave programs to use
PROGRAMS_PER_PROCESSOR = 2
FINISH_BLOCK = 256
SHORTEST_CIRCLE = 32  # outputs; of shorter trellis columns a state can hold more than the whole

# Spec type -> the module with its `Operations`, under the name OPERATIONS. A format that is not listed has no GPU
# kernel.
OPERATIONS: dict[type, str] = {
    TrellisSpec: "vqcompress.kernels.triton.trellis",
    AdditiveSpec: "vqcompress.kernels.triton.additive",
    ScalarSpec: "vqcompress.kernels.triton.scalar",
}


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments after output, input and codes, and the constants that it is compiled for."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True)
class Operations:
    """What a format's Triton kernels do; ``spec`` is always the format's own.

    ``decode(out, codes, spec, tensors)`` fills ``out [columns, outputs]``. ``product(spec, tensors, outputs, columns)``
    says what to launch for partial sums. ``outputs_in_group(spec)`` is how many outputs a lane of the product decodes.
    """

    decode: Callable[[Tensor, Tensor, Any, Mapping[str, Tensor]], None]
    product: Callable[[Any, Mapping[str, Tensor], int, int], Launch]
    outputs_in_group: Callable[[Any], int]


@lru_cache(maxsize=64)
def operations(kind: type) -> Operations:
    """The operations of a spec type of the table."""
    return import_module(OPERATIONS[kind]).OPERATIONS


def unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why decoding cannot serve the case, or an empty string."""
    if reason := device_unsupported_reason(case.device, case.interpreted) or _size_unsupported_reason(spec, shape):
        return reason
    if type(spec) not in OPERATIONS:
        return f"no Triton kernel for the {spec.format} format"
    if isinstance(spec, TrellisSpec) and matrix_shape(shape)[0] < SHORTEST_CIRCLE:
        return f"fewer than {SHORTEST_CIRCLE} outputs"
    return ""


def _size_unsupported_reason(spec: FormatSpec, shape: Shape) -> str:
    match spec:
        case TrellisSpec():
            return size_unsupported_reason(shape, spec.halves(spec.largest_rate) // 2)
        case AdditiveSpec():
            return size_unsupported_reason(shape, -(-spec.codebooks * spec.code_bits // spec.dimension))
        case ScalarSpec():
            return size_unsupported_reason(shape, spec.bits)
    return size_unsupported_reason(shape, 1)


def product_unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why a product straight from the codes cannot serve the case, or an empty string."""
    if case.samples is None or len(shape) != 2:
        return "only products with a matrix"
    if not case.dtype.is_floating_point:
        return f"an input of {case.dtype}"
    if case.samples > MOST_SAMPLES:
        return f"{case.samples} samples, more than {MOST_SAMPLES}"
    if isinstance(spec, AdditiveSpec) and spec.dimension not in (2, 4, 8, 16):
        return f"vectors of {spec.dimension} weights, not of 2, 4, 8 or 16"
    if reason := unsupported_reason(spec, shape, case):
        return reason
    return product_device_unsupported_reason(case.device, case.interpreted)


def decode_transposed(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, outputs]`` in ``dtype``: the reference's float32 rounded once."""
    check_lengths(spec, shape, tensors)
    outputs, columns = matrix_shape(shape)
    codes = stored_bytes(tensors["weight"])
    out = torch.empty(columns, outputs, dtype=dtype, device=codes.device)
    with torch.cuda.device_of(codes):
        operations(type(spec)).decode(out, codes, spec, tensors)
    return out


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., outputs]`` in the dtype of ``x``."""
    check_lengths(spec, shape, tensors)
    check_input(x, shape, bias)
    outputs, columns = matrix_shape(shape)
    flat = x.detach().reshape(-1, columns)
    y = x.new_empty(*x.shape[:-1], outputs)
    if y.numel():
        with torch.cuda.device_of(x):
            _finish(y, _partial_sums(flat, spec, outputs, tensors), tensors.get("scale"), bias)
    return y


def _partial_sums(x: Tensor, spec: FormatSpec, outputs: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """``[splits, samples, outputs]``: the unscaled product with each part of the columns."""
    samples, columns = x.shape
    tiles = -(-outputs // OUTPUTS)
    per_split = columns_per_split(columns, tiles, processors(x.device))
    splits = -(-columns // per_split)
    partial = torch.empty(splits, samples, outputs, dtype=torch.float32, device=x.device)
    own = operations(type(spec))
    launch = own.product(spec, tensors, outputs, columns)
    launch.kernel[(tiles, splits)](
        partial,
        x,
        stored_bytes(tensors["weight"]),
        *launch.arguments,
        batch=samples,
        batch_stride=x.stride(0),
        column_stride=x.stride(1),
        columns_per_split=per_split,
        BATCH=16 if samples <= 16 else MOST_SAMPLES,
        GROUPS=OUTPUTS // own.outputs_in_group(spec),
        DEPTH=DEPTH,
        PRODUCT=product_type(x.dtype),
        **launch.constants,
        num_warps=WARPS,
        num_stages=STAGES,
        **OPTIONS,
    )
    return partial


def columns_per_split(columns: int, tiles: int, processors: int) -> int:
    """A multiple of `DEPTH` that gives every processor its programs, and no program less than one step."""
    wanted = -(-PROGRAMS_PER_PROCESSOR * processors // tiles)
    steps = -(-columns // DEPTH)
    return DEPTH * max(1, -(-steps // wanted))


def product_type(dtype: torch.dtype) -> Any:
    """Triton's type that inputs and weights are multiplied in: the inputs' own.

    The interpreter has no bfloat16 products and takes float32.
    """
    import triton.language as tl

    if dtype == torch.float32 or (dtype == torch.bfloat16 and is_interpreted()):
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


def _finish(y: Tensor, partial: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
    from vqcompress.kernels.triton.finish import finish

    splits, samples, outputs = partial.shape
    finish[(-(-outputs // FINISH_BLOCK), samples)](
        y,
        partial,
        partial if scale is None else scale.detach(),
        partial if bias is None else bias.detach(),
        outputs,
        samples,
        splits,
        SCALE_STRIDE=0 if scale is None or scale.numel() == 1 else 1,
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        BLOCK=FINISH_BLOCK,
        **OPTIONS,
    )
