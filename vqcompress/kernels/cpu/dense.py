"""A whole decoded weight, as the product wants it, in memory that the next one reuses.

Column scales, rotation and outliers are applied where the columns were decoded, in the order and with the rounding of
the format's own decoder. A Linear's weight stays transposed, which a product reads as well. A convolution's is turned
around in tiles of sixteen by sixteen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
        if (finish := _finishing(spec, shape, tensors)) is not None:
            finish(values)
        return _as_weight(values, shape, dtype)


def prepare(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> Callable[[], Tensor] | None:
    """`dense_weight` for later calls, see `vqcompress.kernels.kernel.Prepare`; None where a format has none."""
    if (own := operations(type(spec)).prepare) is None:
        return None
    check_lengths(spec, shape, tensors)
    outputs, columns = matrix_shape(shape)
    with torch.no_grad(), torch.inference_mode(False):
        fill, finish = own(code_spec(spec), tensors, outputs, columns), _finishing(spec, shape, tensors)

    def decode() -> Tensor:
        values = scratch("columns", (columns, outputs), torch.float32)
        fill(values)
        if finish is not None:
            finish(values)
        return _as_weight(values, shape, dtype)

    return decode


def _as_weight(values: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """``values [columns, outputs]`` as a weight of ``shape``."""
    if len(shape) == 4:
        return _cast(_turned(values), dtype).view(shape)
    return _cast(values, dtype).t()


def _finishing(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], None] | None:
    """What undoes the rotation of ``values [columns, outputs]``, then multiplies by column scales, then adds outliers,
    in place; None where there is nothing to do. It holds no stored tensor."""
    turn, add = _turning(spec, shape, tensors), _adding(spec, shape, tensors)
    if turn is None or add is None:
        return turn or add

    def both(values: Tensor) -> None:
        turn(values)
        add(values)

    return both


def _turning(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], None] | None:
    if not (is_rotated(spec) or is_scaled(spec)):
        return None
    from vqcompress.kernels.cpu.finishing import finish_columns

    outputs, _ = matrix_shape(shape)
    block = spec.rotation if isinstance(spec, TrellisSpec) else 0
    signs = normed_signs(outputs, block) if block else None
    factors = column_factors(shape, tensors) if is_scaled(spec) else None
    at = (0 if signs is None else signs.data_ptr(), 0 if factors is None else factors.data_ptr())

    def turn(values: Tensor, held: object = (signs, factors)) -> None:
        parallel_for(finish_columns, len(values), values.numel(), values.data_ptr(), outputs, block, *at)

    return turn


def _adding(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], None] | None:
    if not has_outliers(spec):
        return None
    outlier_places(shape, tensors)  # which checks that they are in the weight
    positions, outliers = tensors[POSITIONS].long(), tensors[VALUES].detach().to(torch.float32, copy=True)

    def add(values: Tensor) -> None:
        values.view(-1).index_add_(0, positions, outliers)

    return add


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
