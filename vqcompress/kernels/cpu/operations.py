"""The CPU's kernels: compiled loops that decode a column at a time, or take a sample's product straight from the codes.

What differs between formats is in `OPERATIONS`, a file per format. Those files are imported at the first call: numba
takes half a second to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels.cpu.threads import parallel_for
from vqcompress.kernels.kernel import Case
from vqcompress.kernels.lengths import check_gradient, check_input, check_lengths
from vqcompress.matrix_view import Shape, matrix_shape

MOST_SAMPLES = 2  # of a product straight from the codes: each costs as much as decoding

# Spec type -> the module with its `Operations`, under the name OPERATIONS. A format that is not listed has no CPU
# kernel.
OPERATIONS: dict[type, str] = {
    TrellisSpec: "vqcompress.kernels.cpu.trellis",
    AdditiveSpec: "vqcompress.kernels.cpu.additive",
    ScalarSpec: "vqcompress.kernels.cpu.scalar",
}

Blocks = tuple[list[list[int]], tuple]
"""For each block of columns its loop's address and arguments; then whatever must live until the loops have run."""


@dataclass(frozen=True)
class Operations:
    """What a format's loops do; ``spec`` is always the format's own.

    ``decode(values, spec, tensors)`` fills ``values [columns, outputs]``, float32. ``outputs_at_a_time(spec)`` says how
    many outputs a product's loops take together. ``product_blocks(x, total, spec, tensors, outputs, columns)`` gives
    the loops that add to the floats at the address ``total`` the unscaled product of the sample at the address ``x``.
    ``parameter_gradients(spec, tensors, grad)`` are as `vqcompress.kernels.kernel.ParameterGradients`.
    ``prepare(spec, tensors, outputs, columns)`` gives a ``decode`` of ``values`` alone that holds no stored tensor.
    """

    decode: Callable[[Tensor, Any, Mapping[str, Tensor]], None]
    outputs_at_a_time: Callable[[Any], int]
    product_blocks: Callable[[int, int, Any, Mapping[str, Tensor], int, int], Blocks]
    parameter_gradients: Callable[[Any, Mapping[str, Tensor], Tensor], dict[str, Tensor]]
    prepare: Callable[[Any, Mapping[str, Tensor], int, int], Callable[[Tensor], None]] | None = None


@lru_cache(maxsize=64)
def operations(kind: type) -> Operations:
    """The operations of a spec type of the table."""
    return import_module(OPERATIONS[kind]).OPERATIONS


def unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why decoding with loops cannot serve the case, or an empty string."""
    if case.device.type != "cpu":
        return f"the input is on {case.device.type}"
    if type(spec) not in OPERATIONS:
        return f"no loops for the {spec.format} format"
    return "" if _has_numba() else "numba is not installed"


def product_unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why a product straight from the codes cannot serve the case, or an empty string."""
    if case.samples is None or len(shape) != 2:
        return "only products with a matrix"
    if not case.dtype.is_floating_point:
        return f"an input of {case.dtype}"
    if case.samples > MOST_SAMPLES:
        return f"{case.samples} samples, more than {MOST_SAMPLES}"
    return unsupported_reason(spec, shape, case)


def decode_transposed(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, outputs]``, computed in float32, in ``dtype``."""
    check_lengths(spec, shape, tensors)
    outputs, columns = matrix_shape(shape)
    values = torch.empty(columns, outputs, dtype=torch.float32)
    operations(type(spec)).decode(values, spec, tensors)
    return values.to(dtype)


def parameter_gradients(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    """As `vqcompress.kernels.kernel.ParameterGradients`, from the packed bytes."""
    check_lengths(spec, shape, tensors)
    check_gradient(grad, shape)
    return operations(type(spec)).parameter_gradients(spec, tensors, grad.float().contiguous())


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., outputs]`` in the dtype of ``x``; sums and scale in float32."""
    check_lengths(spec, shape, tensors)
    check_input(x, shape, bias)
    outputs, columns = shape
    own = operations(type(spec))
    inputs, offset, scale = as_floats(x), None if bias is None else as_floats(bias), tensors.get("scale")
    y, unit = torch.empty(*x.shape[:-1], outputs, dtype=torch.float32), own.outputs_at_a_time(spec)
    parts = -(-outputs // unit)
    total = torch.empty(parts * unit, dtype=torch.float32)
    if scale is not None:
        scale = as_scale(scale)
    last = (0, 0, 0) if scale is None else (scale.data_ptr(), scale.numel(), scale.itemsize)
    for sample in range(y.numel() // max(1, outputs)):
        at = inputs.data_ptr() + 4 * columns * sample
        blocks, kept = own.product_blocks(at, total.data_ptr(), spec, tensors, outputs, columns)
        head = (y.data_ptr() + 4 * outputs * sample, outputs, total.data_ptr(), unit, *last)
        add = 0 if offset is None else offset.data_ptr()
        arguments = (*head, add, len(blocks), *chain.from_iterable(blocks))
        parallel_for(_sample_product(), parts, outputs * columns, *arguments)
        del kept  # held until here: the blocks have nothing but addresses
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def as_floats(tensor: Tensor) -> Tensor:
    """Contiguous, in float32; the same tensor where it is so already."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.float().contiguous()


def as_scale(scale: Tensor) -> Tensor:
    """Contiguous, in float16 or float32, as the loops of a product read it."""
    return scale if scale.dtype == torch.float16 and scale.is_contiguous() else as_floats(scale)


@lru_cache(maxsize=1)
def _has_numba() -> bool:
    return find_spec("numba") is not None


@lru_cache(maxsize=1)
def _sample_product() -> Any:
    """numba's loop, imported once: an import statement takes microseconds each time."""
    from vqcompress.kernels.cpu.loops import sample_product

    return sample_product
