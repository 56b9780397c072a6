"""The oracle: the format's own decoder, on any device, differentiable in the companions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.matrix_view import matrix_shape


def supports(spec: FormatSpec, shape: tuple[int, ...], x: Tensor) -> bool:
    """Every case."""
    return True


def decode_transposed(spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    """``Wᵀ [columns, rows]`` in float32."""
    rows, columns = matrix_shape(shape)
    return spec.decode_transposed(rows, columns, tensors)
