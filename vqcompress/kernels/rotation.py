"""Weights under an output rotation: the kernel that suits the codes does the work, and the rotation is undone after it.

``W = Rᵀ V`` for the ``V`` that the codes stand for, so ``x Wᵀ = (x Vᵀ) R``: a product of few rows is rotated back itself, at a fraction
of what rotating the weight would take; for many rows the decoded weight is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.formats import FormatSpec, TrellisSpec
from vqcompress.formats.rotation import unrotate
from vqcompress.matrix_view import Shape, from_transposed

PURPOSE = "trellis codes with an output rotation: another kernel's work, rotated back"


def is_rotated(spec: FormatSpec) -> bool:
    """Whether the rows of the code are rotated."""
    return isinstance(spec, TrellisSpec) and spec.rotation > 0


def unsupported_reason(spec: FormatSpec, shape: Shape, x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string."""
    return "" if is_rotated(spec) else "no output rotation"


def without_rotation(spec: FormatSpec) -> tuple[TrellisSpec, int]:
    """The spec of ``V``, and the block of the rotation."""
    assert isinstance(spec, TrellisSpec)  # `unsupported_reason` has seen to it
    return replace(spec, rotation=0), spec.rotation


def rotated_decode(choose: Callable[..., Any]) -> Callable[..., Tensor]:
    """A decoder on top of the kernel that ``choose(spec, shape, x)`` finds for the codes."""

    def decode_transposed(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        plain, block = without_rotation(spec)
        values = choose(plain, shape, tensors["weight"]).decode_transposed(plain, shape, tensors, torch.float32)
        return unrotate(values, block).to(dtype)

    return decode_transposed


def rotated_multiply(choose: Callable[..., Any]) -> Callable[..., Tensor]:
    """A product on top of the kernel that ``choose(spec, shape, x)`` finds for the codes."""

    def multiply(
        x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        plain, block = without_rotation(spec)
        inner = choose(plain, shape, x)
        if inner.multiply is None:
            weight = from_transposed(rotated_decode(choose)(spec, shape, tensors, x.dtype), shape)
            return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        y = unrotate(inner.multiply(x, plain, shape, tensors, None).float(), block)
        return (y if bias is None else y + bias.float()).to(x.dtype)

    return multiply
