"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) over rows of tokens and over grids.

A table is a pair ``(cos, sin)``, each float32 ``[tokens, head_width / 2]``. Token n rotates the pair of channels
``(2i, 2i + 1)`` by one angle. Tables are computed for each call, because they depend on the size of the image and, when
Lumina samples above the training resolution, on the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

THETA = 10000.0

Table = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RotaryScaling:
    """How positions beyond the trained range are scaled back into it.

    ``linear`` divides positions (interpolation). ``ntk`` multiplies the base of the frequencies, so that slow
    frequencies are interpolated and fast ones are kept.
    """

    linear: float = 1.0
    ntk: float = 1.0


def time_aware_scaling(factor: float, watershed: float, t: float) -> RotaryScaling:
    """Lumina-Next (arXiv 2406.18583, section 2.3): interpolate while ``t < watershed``, then keep fast frequencies."""
    return RotaryScaling(linear=factor) if t < watershed else RotaryScaling(ntk=factor)


def _angles(length: int, count: int, scaling: RotaryScaling, device: torch.device) -> Tensor:
    """``[length, count]``: position × ``θ^(-i / count)``."""
    exponents = torch.arange(count, dtype=torch.float32, device=device) / count
    positions = torch.arange(length, dtype=torch.float32, device=device) / scaling.linear
    return torch.outer(positions, 1.0 / (THETA * scaling.ntk) ** exponents)


def row_table(length: int, head_width: int, scaling: RotaryScaling, device: torch.device) -> Table:
    """Table for tokens in one row (Flag-DiT): all ``head_width / 2`` pairs rotate with the token's index."""
    angles = _angles(length, head_width // 2, scaling, device)
    return angles.cos(), angles.sin()


def grid_table(height: int, width: int, head_width: int, scaling: RotaryScaling, device: torch.device) -> Table:
    """Table for a grid of tokens, row by row (Next-DiT): even pairs rotate with the row, odd pairs with the column."""
    count = head_width // 4
    rows = _angles(height, count, scaling, device)[:, None, :, None].expand(-1, width, -1, 1)
    columns = _angles(width, count, scaling, device)[None, :, :, None].expand(height, -1, -1, 1)
    angles = torch.cat([rows, columns], dim=-1).reshape(height * width, 2 * count)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Table) -> Tensor:
    """Rotate the channel pairs of ``x`` ``[batch, tokens, heads, head_width]`` in float32. The result has x's dtype.

    Table entries: ``[tokens, head_width / 2]``, or ``[batch, tokens, head_width / 2]`` with one table per sample.
    """
    cos, sin = (entry.unsqueeze(-2) for entry in table)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
