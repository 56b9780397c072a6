"""How a layer's weight becomes a matrix, and its input becomes samples. Nothing else in the package knows.

Every quantizer takes ``W [outputs, columns]``: a row per output channel, a column per input. For a convolution a column
is one (input channel, kernel row, kernel column) tap, in the order in which ``torch.nn.functional.unfold`` lays out
patches, so that ``unfold_input(x) @ W.T`` is the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError

Shape = tuple[int, ...]
"""Of a dense weight: ``(out, in)`` or ``(out, in, kh, kw)``."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """``(outputs, columns)`` of a dense weight ``[out, in]`` or ``[out, in, kh, kw]``.

    Raises `ArchitectureError` for a weight that is neither.
    """
    if len(shape) not in (2, 4):
        raise ArchitectureError(
            f"a weight of shape {tuple(shape)} has no matrix view; only Linear [out, in] and "
            "Conv2d [out, in, kh, kw] weights can be quantized, keep this layer dense"
        )
    return shape[0], math.prod(shape[1:])


def to_matrix(weight: Tensor) -> Tensor:
    """Dense weight ``[out, in]`` or ``[out, in, kh, kw]`` -> ``[outputs, columns]`` (a view where possible)."""
    return weight.reshape(matrix_shape(weight.shape))


def from_transposed(transposed: Tensor, shape: Sequence[int]) -> Tensor:
    """``Wᵀ [columns, outputs]`` -> dense weight of ``shape`` (a strided view: no copy for Linear)."""
    return transposed.t().reshape(tuple(shape)) if len(shape) == 4 else transposed.t()


def unfold_input(x: Tensor, layer: nn.Module) -> Tensor:
    """What ``layer`` multiplies its matrix with: samples ``[n, columns]``, one per token or output position.

    ``x`` is the layer's input: ``[..., in]`` for Linear, ``[batch, in, height, width]`` for Conv2d.
    """
    if isinstance(layer, nn.Conv2d):
        return _patches(x, layer)
    return x.reshape(-1, x.shape[-1])


def _patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    if conv.groups != 1:
        raise ArchitectureError(f"a grouped convolution ({conv.groups} groups) has no single matrix; keep it dense")
    padding = conv.padding
    if isinstance(padding, str) or conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=_pad_mode(conv))
        padding = (0, 0)
    found = patches(x, conv.kernel_size, conv.stride, padding, conv.dilation)
    return found.reshape(-1, found.shape[2])


def patches(
    x: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """``x [batch, in, height, width]`` -> ``[batch, positions, columns]``, what a convolution multiplies its matrix
    with."""
    return F.unfold(x, kernel_size, dilation, padding, stride).transpose(1, 2)


def _pad_mode(conv: nn.Conv2d) -> str:
    return "constant" if conv.padding_mode == "zeros" else conv.padding_mode


def stored_shape(dense_ndim: int, code_shape: tuple[int, int]) -> tuple[int, ...]:
    """Shape under which packed codes are stored: 2-D for Linear, ``(…, 1, 1)`` for Conv2d."""
    return code_shape if dense_ndim == 2 else (*code_shape, 1, 1)


def is_quantizable(layer: nn.Module) -> bool:
    """Whether ``layer`` has a matrix view: any Linear, any Conv2d with one group."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
