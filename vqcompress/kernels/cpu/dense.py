"""A whole decoded weight, as the product wants it, in memory that the next one reuses.

Column scales, rotation and outliers are applied where the columns were decoded, in the order and with the rounding of
the format's own decoder. A Linear's weight stays transposed, which a product reads as well. A convolution's is turned
around in tiles of sixteen by sixteen.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec, TrellisSpec
from vqcompress.formats.outliers import POSITIONS, VALUES
from vqcompress.formats.rotation import normed_signs
from vqcompress.kernels.cpu.operations import operations
from vqcompress.kernels.cpu.scratch import scratch
from vqcompress.kernels.cpu.threads import parallel_for
from vqcompress.kernels.lengths import check_lengths
from vqcompress.kernels.transforms import code_spec, column_factors, has_outliers, is_rotated, is_scaled, outlier_places
from vqcompress.matrix_view import Shape, matrix_shape


def dense_weight(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight of ``shape`` in ``dtype``, the reference's bits, valid until this thread decodes the next one.

    Not differentiable. A matrix is a transposed view, a filter is contiguous.
    """
    check_lengths(spec, shape, tensors)
    outputs, columns = matrix_shape(shape)
    values = scratch("columns", (columns, outputs), torch.float32)
    with torch.no_grad():
        operations(type(spec)).decode(values, code_spec(spec), tensors)
        _finish(values, spec, shape, tensors)
        if len(shape) == 4:
            return _cast(_turned(values), dtype).view(shape)
        return _cast(values, dtype).t()


def _finish(values: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> None:
    """Undo the rotation of ``values [columns, outputs]``, then multiply by column scales, then add outliers."""
    columns, outputs = values.shape
    if is_rotated(spec) or is_scaled(spec):
        from vqcompress.kernels.cpu.finishing import finish_columns

        block = spec.rotation if isinstance(spec, TrellisSpec) else 0
        signs = normed_signs(outputs, block) if block else None
        factors = column_factors(shape, tensors) if is_scaled(spec) else None
        at = (0 if signs is None else signs.data_ptr(), 0 if factors is None else factors.data_ptr())
        parallel_for(finish_columns, columns, values.numel(), values.data_ptr(), outputs, block, *at)
    if has_outliers(spec):
        outlier_places(shape, tensors)  # which checks that they are in the weight
        values.view(-1).index_add_(0, tensors[POSITIONS].long(), tensors[VALUES].float())


def _turned(values: Tensor) -> Tensor:
    """``values [columns, outputs]`` as ``[outputs, columns]``."""
    from vqcompress.kernels.cpu.finishing import turn_columns

    columns, outputs = values.shape
    turned = scratch("turned", (outputs, columns), torch.float32)
    arguments = values.data_ptr(), turned.data_ptr(), columns, outputs
    parallel_for(turn_columns, -(-columns // 16), values.numel(), *arguments)
    return turned


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values if dtype == torch.float32 else scratch("cast", tuple(values.shape), dtype).copy_(values)
