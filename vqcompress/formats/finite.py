"""Whether every number of a tensor is finite, fast enough to ask of each scale on every load."""

from __future__ import annotations

import torch
from torch import Tensor

EXPONENT = 0x7C00  # of a float16; all ones for infinities and NaN
_AT_ONCE = 1 << 17  # numbers; what they need beside themselves stays in the cache, and loading allocates no more of it


def not_finite(tensor: Tensor) -> str | None:
    """What is wrong with a floating-point tensor that holds an infinity or a NaN, ``None`` for any other tensor."""
    return None if is_finite(tensor) else "holds values that are not finite"


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is an infinity or a NaN; true of integers."""
    if not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.float16 and tensor.device.type == "cpu" and tensor.is_contiguous():
        bits = tensor.detach().reshape(-1).view(torch.int16).numpy()
        pieces = (bits[start : start + _AT_ONCE] for start in range(0, len(bits), _AT_ONCE))
        return not any(((piece & EXPONENT) == EXPONENT).any() for piece in pieces)
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
