"""The inverse factor of a large second moment, block by block: half of a float64 square in memory, nearly all of it matrix products.

A 3x3 convolution with 2560 inputs has a second moment of 23 040 columns. As whole float64 squares its factor and the
inverse of that take 8.5 GB; here only blocks on and below the diagonal exist, 2.1 GB, and each is let go once written.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024  # rows of a block: products of this size run at full speed

Rows = list[Tensor]
"""Block rows of a lower triangular matrix, float64: the i-th is ``[rows of block i, all columns up to its diagonal block]``."""


def inverse_upper_factor(moment: Tensor, order: Tensor, damping: float) -> tuple[Tensor, Tensor] | None:
    """``U`` upper with ``(H + damping)⁻¹ = Uᵀ U``, float32 ``[n, n]``, and its diagonal in float64; ``None`` where H is not definite.

    H is ``moment [n, n]`` with rows and columns in ``order``. As in `error_feedback`: with both axes reversed,
    the lower factor L of H gives U as the reversed inverse of L, so H⁻¹ itself is never made.
    """
    lower = _cholesky(moment, order.flip(0), damping)
    if lower is None:
        return None
    _invert(lower)
    return _reversed(lower)


def _cholesky(moment: Tensor, order: Tensor, damping: float) -> Rows | None:
    """L with ``L Lᵀ = H + damping``, its diagonal blocks already inverted; one block row after another, from the left."""
    rows: Rows = []
    for wanted in order.split(BLOCK):
        start, stop = _range(rows, len(wanted))
        row = moment[wanted][:, order[:stop]].double()
        row[:, start:].diagonal().add_(damping)
        for before, other in enumerate(rows):
            columns = slice(BLOCK * before, BLOCK * before + len(other))
            left = row[:, columns].addmm_(row[:, : columns.start], other[:, : columns.start].t(), alpha=-1)
            left.copy_(left @ other[:, columns.start :].t())
        corner, failed = torch.linalg.cholesky_ex(row[:, start:].addmm_(row[:, :start], row[:, :start].t(), alpha=-1))
        if failed:
            return None
        eye = torch.eye(len(row), dtype=row.dtype, device=row.device)
        row[:, start:] = torch.linalg.solve_triangular(corner, eye, upper=False)
        rows.append(row)
    return rows


def _invert(rows: Rows) -> None:
    """L⁻¹ in L's memory: ``M_i = -L_ii⁻¹ (sum over k < i of L_ik M_k)`` for each block row, M_k being those above."""
    for index, row in enumerate(rows):
        start = BLOCK * index
        total = torch.zeros_like(row[:, :start])
        for before, other in enumerate(rows[:index]):
            columns = slice(BLOCK * before, BLOCK * before + len(other))
            total[:, : columns.stop].addmm_(row[:, columns], other)
        row[:, :start] = row[:, start:] @ total.neg_()


def _reversed(rows: Rows) -> tuple[Tensor, Tensor]:
    """Both axes reversed, in float32, and the diagonal as it was; empties ``rows``."""
    size = rows[-1].shape[1]
    diagonal = torch.cat([row[:, row.shape[1] - len(row) :].diagonal() for row in rows]).flip(0)
    upper = torch.zeros(size, size, device=diagonal.device)  # its zeros are never touched, so they take no memory
    while rows:
        row = rows.pop()
        stop = row.shape[1]
        upper[size - stop : size - stop + len(row), size - stop :] = row.flip(0, 1)
    return upper, diagonal


def _range(rows: Rows, count: int) -> tuple[int, int]:
    start = rows[-1].shape[1] if rows else 0
    return start, start + count
