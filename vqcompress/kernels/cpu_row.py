"""One row of inputs times vector codes on the CPU: values go from the tables into the sums and are never stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels import cpu_numba
from vqcompress.matrix_view import matrix_shape

Shape = tuple[int, ...]

PURPOSE = "one or two rows: looks up and multiplies in one pass, reading the codes alone"
MOST_ROWS = 2  # each costs as much as decoding


def refusal(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    if isinstance(spec, ScalarSpec):  # their scales differ along the inputs
        return "scalar codes"
    if not x.is_floating_point() or len(shape) != 2:
        return "only products with a matrix"
    if (count := x.numel() // max(1, x.shape[-1])) > MOST_ROWS:
        return f"{count} rows, more than {MOST_ROWS}"
    return cpu_numba.refusal(spec, shape, x)


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., rows]`` in the dtype of ``x``; sums and scale in float32."""
    rows, columns = matrix_shape(shape)
    inputs = x.detach().reshape(-1, columns).float().contiguous()
    sums = torch.stack([_unscaled(row.numpy(), spec, tensors, rows) for row in inputs]) if len(inputs) else inputs
    y = sums.new_empty(0, rows) if not len(inputs) else sums * tensors["scale"].detach().float()
    if bias is not None:
        y = y + bias.detach().float()
    return y.to(x.dtype).reshape(*x.shape[:-1], rows)


def _unscaled(x: np.ndarray, spec: FormatSpec, tensors: Mapping[str, Tensor], rows: int) -> Tensor:
    if isinstance(spec, TrellisSpec):
        return _trellis(x, spec, tensors, rows)
    return _additive(x, cast(AdditiveSpec, spec), tensors, rows)


def _trellis(x: np.ndarray, spec: TrellisSpec, tensors: Mapping[str, Tensor], rows: int) -> Tensor:
    from vqcompress.kernels import cpu_loops
    from vqcompress.kernels.cpu_trellis_loops import trellis_row

    arguments = cpu_numba.trellis_arguments(cpu_loops, spec, tensors, rows, len(x))
    codes, starts, rates, tables, state_bits, _ = arguments
    total = np.zeros(rows + -rows % 16, np.float32)
    for rate in np.unique(rates).tolist():
        if rate:
            trellis_row(state_bits, rate)(0, len(x), total, x, codes, starts, rates, tables[rate - 1], rows)
    return torch.from_numpy(total[:rows])


def _additive(x: np.ndarray, spec: AdditiveSpec, tensors: Mapping[str, Tensor], rows: int) -> Tensor:
    from vqcompress.kernels import cpu_loops
    from vqcompress.kernels.cpu_additive_loops import additive_row

    codes, starts, rates, books, _, _ = cpu_numba.additive_arguments(cpu_loops, spec, tensors, rows, len(x))
    vectors = spec.vectors(rows)
    total = np.zeros(vectors * spec.dimension, np.float32)
    multiply = additive_row(spec.dimension, spec.code_bits)
    multiply(0, len(x), total, x, codes, starts, rates, books, vectors)
    return torch.from_numpy(total[:rows])
