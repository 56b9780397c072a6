"""Classifier-free guidance inside the network, for a batch of [conditional, unconditional] halves of one latent."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The published class-conditional figures use guidance on the first three latent channels only.
GUIDED_CHANNELS = 3


def power_cosine(t: Tensor, scale: float, steps: int, power: float) -> Tensor:
    """Guidance that grows from 1 at t = steps to ``scale`` at t = 0: 1 + (scale-1)(1-cos(π(1-t/steps)^power))/2."""
    return 1 + (scale - 1) * (1 - torch.cos(math.pi * (1 - t / steps) ** power)) / 2


def guided(
    network: Callable[[Tensor], Tensor], x: Tensor, scale: float | Tensor, channels: int = GUIDED_CHANNELS
) -> Tensor:
    """Run ``network`` on both halves of a batch and apply guidance to the first ``channels`` output channels.

    ``x`` [2n, c, s, s]: only the first half is read, so both conditions see the same latent. ``scale``: a number, or
    [2n] with one per image. Returns [2n, C, s, s]; the guided channels are the same in both halves.
    """
    half = x[: len(x) // 2]
    out = network(torch.cat([half, half]))
    conditional, unconditional = out[:, :channels].chunk(2)
    if isinstance(scale, Tensor):
        scale = scale[: len(half), None, None, None].to(out.dtype)
    pushed = unconditional + scale * (conditional - unconditional)
    return torch.cat([torch.cat([pushed, pushed]), out[:, channels:]], dim=1)
