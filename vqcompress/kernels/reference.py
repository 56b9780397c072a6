"""The oracle: the format's own decoder, on any device, differentiable in the companions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.matrix_view import matrix_shape

PURPOSE = "anything, anywhere, slowly: plain torch operations"


def unsupported_reason(spec: FormatSpec, shape: tuple[int, ...], x: Tensor) -> str:
    """Nothing is refused."""
    return ""


def decode_transposed(
    spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, rows]``, computed in float32, in ``dtype``."""
    rows, columns = matrix_shape(shape)
    return spec.decode_transposed(rows, columns, tensors).to(dtype)
