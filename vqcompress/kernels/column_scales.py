"""Weights whose columns have gains: the kernel that suits the codes does the work, gains go to its input or to what it decoded.

``W = V diag(g)``, so ``x Wᵀ = (x · g) Vᵀ``: a product of few rows scales its input, for many rows the decoded weight is scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, TrellisSpec
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, unpack_column_scales
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.matrix_view import Shape, from_transposed, matrix_shape

PURPOSE = "codes with column gains: another kernel's work on the scaled input"

_GAINS: TensorCache[Tensor] = TensorCache()


def has_gains(spec: FormatSpec) -> bool:
    """Whether the columns of the code have gains."""
    return isinstance(spec, AdditiveSpec | TrellisSpec) and spec.column_scales


def unsupported_reason(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    return "" if has_gains(spec) else "no column gains"


def without_gains(spec: FormatSpec) -> FormatSpec:
    """The spec of ``V``."""
    assert isinstance(spec, AdditiveSpec | TrellisSpec)  # `unsupported_reason` has seen to it
    return replace(spec, column_scales=False)


def column_gains(shape: Shape, tensors: Mapping[str, Tensor]) -> Tensor:
    """The factors, float32 ``[columns]``."""
    columns = matrix_shape(shape)[1]
    return _GAINS(
        tensors[COLUMN_SCALES_ON_DISK], columns, lambda: unpack_column_scales(tensors[COLUMN_SCALES_ON_DISK], columns)
    )


def gained_decode(choose: Callable[..., Any]) -> Callable[..., Tensor]:
    """A decoder on top of the kernel that ``choose(spec, shape, x)`` finds for the codes."""

    def decode_transposed(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        plain = without_gains(spec)
        values = choose(plain, shape, tensors["weight"]).decode_transposed(plain, shape, tensors, torch.float32)
        return (values * column_gains(shape, tensors)[:, None]).to(dtype)

    return decode_transposed


def gained_multiply(choose: Callable[..., Any]) -> Callable[..., Tensor]:
    """A product on top of the kernel that ``choose(spec, shape, x)`` finds for the codes."""

    def multiply(
        x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        plain = without_gains(spec)
        inner = choose(plain, shape, x)
        if inner.multiply is None:
            weight = from_transposed(gained_decode(choose)(spec, shape, tensors, x.dtype), shape)
            return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        scaled = x.float() * column_gains(shape, tensors)
        # Small gains would push float16 below its normal numbers.
        return inner.multiply(
            scaled if x.dtype == torch.float16 else scaled.to(x.dtype), plain, shape, tensors, bias
        ).to(x.dtype)

    return multiply
