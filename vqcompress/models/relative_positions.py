"""Learned attention biases by relative position on a square window (Swin, arXiv 2103.14030, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def table_rows(window: int) -> int:
    """Number of relative positions on a window² grid: (2·window-1)²."""
    return (2 * window - 1) ** 2


def relative_position_index(window: int) -> Tensor:
    """int64 [window², window²]: the table row of each (query, key) pair, as official checkpoints store it."""
    place = torch.arange(window**2)
    row, column = place // window, place % window
    rows, columns = (p[:, None] - p + window - 1 for p in (row, column))
    return rows * (2 * window - 1) + columns


def relative_bias(table: Tensor, window: int) -> Tensor:
    """Table [≥ (2·window-1)², heads] -> [heads, window², window²], the same as ``table[relative_position_index]``.

    The windows of the table are sliced, not gathered by index. At 512 px the stored indices of DiffiT's 28 blocks
    would take 235 MB. Rows past (2·window-1)² (for a class token, in MDT) are not read.
    """
    side = 2 * window - 1
    grid = table[: side * side].unflatten(0, (side, side))
    # windows[a, b, head, p, q] = grid[a + p, b + q]. The key's row and column decrease along p and q.
    windows = grid.unfold(0, window, 1).unfold(1, window, 1).flip(3, 4)
    return windows.permute(2, 0, 1, 3, 4).flatten(3, 4).flatten(1, 2)
