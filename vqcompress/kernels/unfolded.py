"""Convolutions of a few positions on a CPU, as one product of unfolded inputs with the decoded columns.

Where a map has few positions, a convolution is mostly work on its filter: torch brings it into its own order in each
call, and a decoded one had to be turned around before that. A product reads the columns as they were decoded.
``python benchmarks/unet_step.py --models quarter,shapes --sizes 8`` shows what that saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.matrix_view import patches

MOST_POSITIONS, LEAST_WEIGHTS = 16, 1 << 15


def is_unfolded(x: Tensor, shape: Sequence[int]) -> bool:
    """Whether ``x [batch, in, height, width]`` is convolved so with a filter of ``shape [out, in, kh, kw]``."""
    if x.device.type != "cpu" or math.prod(shape) < LEAST_WEIGHTS:
        return False
    return x.dim() == 4 and 0 < x.shape[0] * x.shape[2] * x.shape[3] <= MOST_POSITIONS


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: tuple[int, ...], geometry: Sequence[Sequence[int]]
) -> Tensor:
    """`torch.nn.functional.conv2d` of a filter ``[out, in, kh, kw]``, or of one as a matrix ``[out, in kh kw]``.

    ``geometry`` are stride, padding and dilation, a pair each. The output's layout in memory is that of ``x`` in both.
    """
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, *geometry)
    stride, padding, dilation = map(tuple, geometry)
    high, wide = (
        (x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis in range(2)
    )
    product = F.linear(patches(x, kernel_size, stride, padding, dilation), weight, bias)
    y = product.view(len(x), high, wide, len(weight)).permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y if last else y.contiguous()
