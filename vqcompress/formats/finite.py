"""Whether every number of a tensor is finite, fast enough to ask of each scale on every load."""

from __future__ import annotations

import torch
from torch import Tensor

_EXPONENT = 0x7C00  # of a float16; all ones for infinities and NaN


def not_finite(tensor: Tensor) -> str | None:
    """What is wrong with a floating-point tensor that holds an infinity or a NaN, ``None`` for any other tensor."""
    return None if is_finite(tensor) else "holds values that are not finite"


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is an infinity or a NaN; true of integers."""
    if not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.float16 and tensor.device.type == "cpu" and tensor.is_contiguous():
        bits = tensor.detach().reshape(-1).view(torch.int16).numpy()
        return not bool(((bits & _EXPONENT) == _EXPONENT).any())
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
