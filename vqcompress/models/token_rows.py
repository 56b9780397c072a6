"""Convert images of one or several sizes to one batch of token rows, and back.

Flag-DiT and Next-DiT use this. They take a tensor ``[batch, channels, height, width]`` or a list of
``[channels, height, width]`` with different sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vqcompress.errors import ArchitectureError

Images: TypeAlias = Tensor | Sequence[Tensor]
# A network returns the same kind of batch as its input.
SameImages = TypeVar("SameImages", bound=Images)
Grid = tuple[int, int]


@dataclass(frozen=True)
class TokenRows:
    """``tokens`` ``[batch, longest, width]``; ``present`` ``[batch, longest]`` bool, or None without padding."""

    tokens: Tensor
    grids: tuple[Grid, ...]
    present: Tensor | None


def patches(image: Tensor, patch: int) -> Tensor:
    """``[channels, height, width]`` -> ``[rows, columns, channels·patch·patch]``, channel first inside a patch."""
    if image.shape[-2] % patch or image.shape[-1] % patch:
        raise ArchitectureError(
            f"A latent of {image.shape[-2]}×{image.shape[-1]} cannot be cut into {patch}×{patch} patches; "
            f"choose a height and width that are multiples of {patch}."
        )
    cut = image.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))
    return cut.permute(1, 3, 0, 2, 4).flatten(2)


def image_of(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """``[rows·columns, patch·patch·channels]``, channel last inside a patch -> ``[channels, height, width]``."""
    cells = tokens.reshape(*grid, patch, patch, -1)
    return cells.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)


def batched(rows: Sequence[Tensor], grids: Sequence[Grid], padding: Tensor | None) -> TokenRows:
    """Pad rows ``[length, width]`` at the end with the token ``padding`` ``[width]``.

    ``padding`` None means that the network was trained without padding. Rows of unequal length then raise
    ArchitectureError.
    """
    if len({len(row) for row in rows}) == 1:
        return TokenRows(torch.stack(list(rows)), tuple(grids), None)
    if padding is None:
        raise ArchitectureError(
            f"Images of {', '.join(f'{h}×{w}' for h, w in grids)} patches cannot share a batch: this network has no "
            "pad_token. Call it once for each size."
        )
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    present = torch.arange(int(lengths.max()), device=rows[0].device) < lengths[:, None]
    padded = pad_sequence(list(rows), batch_first=True)
    return TokenRows(torch.where(present[..., None], padded, padding.to(padded.dtype)), tuple(grids), present)
