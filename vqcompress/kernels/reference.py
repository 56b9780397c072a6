"""The reference kernel: the format's decoder, on any device, differentiable in the quantization parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels.kernel import Case
from vqcompress.kernels.lengths import check_lengths
from vqcompress.matrix_view import Shape, matrix_shape


def unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """An empty string: the reference supports every case."""
    return ""


def decode_transposed(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, outputs]``, computed in float32 and cast to ``dtype``."""
    check_lengths(spec, shape, tensors)
    outputs, columns = matrix_shape(shape)
    return spec.decode_transposed(outputs, columns, tensors).to(dtype)


def parameter_gradients(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    """Name -> gradient of every floating-point tensor, float32, by differentiating the decoder.

    ``grad [columns, outputs]`` is the gradient of ``Wᵀ``.
    """
    leaves = {name: t.detach().float().requires_grad_() for name, t in tensors.items() if t.is_floating_point()}
    with torch.enable_grad():
        decoded = decode_transposed(spec, shape, {**tensors, **leaves})
    found = torch.autograd.grad(decoded, list(leaves.values()), grad.float(), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
