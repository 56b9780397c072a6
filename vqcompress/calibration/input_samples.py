"""The samples that a layer multiplies its matrix with, all of them or only some."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vqcompress.matrix_view import to_matrix, unfold_input


def sample_count(x: Tensor, layer: nn.Module) -> int:
    """How many samples ``unfold_input(x, layer)`` has: one per token, or per output position of a convolution."""
    if isinstance(layer, nn.Conv2d):
        high, wide = _output_size(x, layer)
        return x.shape[0] * high * wide
    return x.numel() // x.shape[-1]


def input_samples(x: Tensor, layer: nn.Module, positions: Tensor | None = None) -> Tensor:
    """Samples ``[n, columns]`` of ``unfold_input(x, layer)`` at ``positions`` (int64 ``[n]`` on x's device; None: all).

    Of a convolution only the patches at ``positions`` are made: a 3x3 layer never takes nine times its input.
    """
    if positions is None:
        return unfold_input(x, layer)
    if isinstance(layer, nn.Conv2d) and _is_plain(layer):
        return to_matrix(_patches_at(x, layer, positions))
    return unfold_input(x, layer)[positions]


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and conv.padding != "same"


def _patches_at(x: Tensor, conv: nn.Conv2d, positions: Tensor) -> Tensor:
    """``[n, in, kernel height, kernel width]``."""
    high, wide = _output_size(x, conv)
    top, left = _padding(conv)
    padded = F.pad(x, (left, left, top, top))
    windows = padded.unfold(2, conv.kernel_size[0], conv.stride[0]).unfold(3, conv.kernel_size[1], conv.stride[1])
    image, place = positions // (high * wide), positions % (high * wide)
    return windows[image, :, place // wide, place % wide]


def _output_size(x: Tensor, conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "same":
        return x.shape[2], x.shape[3]
    sides = zip(x.shape[2:], _padding(conv), conv.dilation, conv.kernel_size, conv.stride, strict=True)
    high, wide = ((size + 2 * pad - step * (kernel - 1) - 1) // stride + 1 for size, pad, step, kernel, stride in sides)
    return high, wide


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    return (0, 0) if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1])
