"""Output rotation: a signed block Hadamard transform of the outputs, which makes heavy-tailed columns look Gaussian.

``rotate`` takes ``w`` to ``R w`` with ``R = H_b S / sqrt(b)``: signs ``S`` that a hash of the output's number gives,
then the Walsh-Hadamard matrix over blocks of ``b`` outputs, a power of two (Tseng et al. 2024, QuIP#, arXiv 2402.04396,
section 3.1, on the output side only). ``R`` is orthogonal and acts on outputs, so ``tr(E H Eᵀ)`` and the second moment
stay what they are. Nothing is stored but ``b``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

CPU = torch.device("cpu")
MAX_BLOCK = 256  # larger blocks gained nothing more, and take longer to undo


def rotation_block(outputs: int) -> int:
    """The largest power of two up to `MAX_BLOCK` that divides ``outputs``."""
    return min(outputs & -outputs, MAX_BLOCK)


def rotate(values: Tensor, block: int) -> Tensor:
    """``R`` along the last dimension of ``values [..., outputs]``, float32.

    ``block`` divides ``outputs``; 0 changes nothing.
    """
    if not block:
        return values
    return _hadamard(values * output_signs(values.shape[-1], values.device), block) * _norm(block)


def unrotate(values: Tensor, block: int) -> Tensor:
    """The inverse of `rotate`: ``Rᵀ`` along the last dimension."""
    if not block:
        return values
    return _hadamard(values, block) * _norm(block) * output_signs(values.shape[-1], values.device)


@lru_cache(maxsize=1024)
def output_signs(outputs: int, device: torch.device = CPU) -> Tensor:
    """+1 or -1 for each output, float32 ``[outputs]``, computed on ``device``. Treat the result as read-only."""
    with torch.inference_mode(False):  # or the first caller's mode would stick to a tensor that all share
        return _signs(outputs, device)


@lru_cache(maxsize=64)
def normed_signs(outputs: int, block: int) -> Tensor:
    """The signs times the norm of a rotation over ``block`` outputs, float32 ``[outputs]``, read-only. Multiplying by
    both at once rounds as multiplying by one after the other: a sign changes no digit."""
    return output_signs(outputs) * _norm(block)


def _signs(outputs: int, device: torch.device) -> Tensor:
    number = torch.arange(outputs, dtype=torch.int64, device=device)
    mixed = (number * 2654435769) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & 0xFFFFFFFF
    return 1.0 - 2.0 * ((mixed >> 31) & 1).float()


def _hadamard(values: Tensor, block: int) -> Tensor:
    """Unnormalised fast Walsh-Hadamard transform over runs of ``block`` values of the last dimension."""
    shape, span = values.shape, 1
    while span < block:
        pairs = values.reshape(*shape[:-1], shape[-1] // (2 * span), 2, span)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        values = torch.stack([first + second, first - second], dim=-2)
        span *= 2
    return values.reshape(shape)


def _norm(block: int) -> float:
    return block**-0.5
