"""The upper factor of a second moment's inverse, which error feedback runs on.

Large moments are factored block by block, mostly in matrix products: half of a float64 square in memory. A 3x3
convolution with 2560 inputs has a second moment of 23 040 columns. As whole float64 squares its factor and the inverse
of that take 8.5 GB; by blocks only what is on and below the diagonal exists, 2.1 GB, and each block is let go once
written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LARGEST_WHOLE = 2048  # columns up to which a moment is factored in one piece; beyond, blocks take less memory and time
BLOCK = 1024  # columns of a block: products of this size run at full speed
SOLVED_WHOLE = 256  # columns of a triangle that is inverted by substitution
ELIMINATED_SINGLY = 32  # columns of a corner whose pivots are raised one after another

BlockLines = list[Tensor]
"""A lower triangular matrix, float64: the i-th tensor is ``[lines of block i, all columns up to its diagonal
block]``."""


def inverse_upper_factor(
    moment: Tensor,
    order: Tensor,
    damping: float,
    distortion: Tensor | None = None,
    *,
    largest_whole: int = LARGEST_WHOLE,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor] | None:
    """``U`` upper with ``(H + damping + Λ)⁻¹ = Uᵀ U``, float32 ``[n, n]``, and its diagonal in float64; ``None`` where
    H is not definite.

    H is ``moment [n, n]`` with both axes in ``order [n]``. Reversing both axes turns the lower factor of H into the
    upper factor of its inverse: ``H = R Rᵀ`` with R upper, hence ``H⁻¹ = R⁻ᵀ R⁻¹`` and ``U = R⁻¹`` needs one triangular
    inverse, no explicit H⁻¹. Beyond ``largest_whole`` columns it goes by blocks of ``block``.

    The diagonal Λ follows from ``distortion D [n]`` in ``[0, 1)``, in processing order (`raised_cholesky`); it is
    ``D_j / U_jj²``, and 0 without ``distortion``.
    """
    backward = order.flip(0)
    kept = None if distortion is None else distortion.double().flip(0).to(moment.device)
    if len(order) <= largest_whole:
        return _factor_whole(moment, backward, damping, kept)
    lower = _cholesky(moment, backward, damping, kept, block)
    if lower is None:
        return None
    _invert(lower, block)
    return _reversed(lower)


def raised_cholesky(matrix: Tensor, distortion: Tensor | None) -> Tensor | None:
    """Lower L with ``L Lᵀ = matrix + Λ``: the diagonal Λ raises every pivot from ``P_jj`` to ``P_jj / (1 - D_j)``.

    ``matrix [n, n]`` float64 is used up; ``distortion D [n]`` in ``[0, 1)``, ``None`` for zeros: then Λ = 0. Column j
    is eliminated as one that takes up only ``1 - D_j`` of what it is asked for, which leaves ``P - (1 - D_j) P_j P_jᵀ /
    P_jj`` for the columns after it. ``None`` where a pivot is not positive.
    """
    if distortion is None:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else lower
    if len(matrix) <= ELIMINATED_SINGLY:
        return _raised_singly(matrix, (1 - distortion).sqrt())
    half = len(matrix) // 2
    first = raised_cholesky(matrix[:half, :half], distortion[:half])
    if first is None:
        return None
    below = torch.linalg.solve_triangular(first, matrix[half:, :half].t(), upper=False).t()
    last = raised_cholesky(matrix[half:, half:].addmm_(below, below.t(), alpha=-1), distortion[half:])
    if last is None:
        return None
    return torch.cat([torch.cat([first, first.new_zeros(half, len(last))], 1), torch.cat([below, last], 1)])


def _raised_singly(matrix: Tensor, taken: Tensor) -> Tensor | None:
    home, matrix, taken = matrix.device, matrix.cpu().numpy().copy(), taken.cpu().numpy()
    lower = np.zeros_like(matrix)
    for j in range(len(matrix)):
        pivot = matrix[j, j]
        if not pivot > 0:
            return None
        lower[j:, j] = column = matrix[j:, j] * (taken[j] / pivot**0.5)
        matrix[j:, j:] -= np.outer(column, column)
        lower[j, j] /= taken[j] ** 2
    return torch.from_numpy(lower).to(home)


def _factor_whole(
    moment: Tensor, backward: Tensor, damping: float, distortion: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """In one piece; holds two float64 squares at a time."""
    reverse = moment[backward][:, backward].double()
    reverse.diagonal().add_(damping)
    lower = raised_cholesky(reverse, distortion)
    if lower is None:
        return None
    del reverse
    factor = _invert_upper(lower.flip(0, 1))
    return factor.float(), factor.diagonal()


def _invert_upper(matrix: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix, in its own memory, mostly by matrix products."""
    if len(matrix) <= SOLVED_WHOLE:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return matrix.copy_(torch.linalg.solve_triangular(matrix, eye, upper=True))
    half = len(matrix) // 2
    first, last = _invert_upper(matrix[:half, :half]), _invert_upper(matrix[half:, half:])
    matrix[:half, half:] = -(first @ matrix[:half, half:]) @ last
    return matrix


def _cholesky(
    moment: Tensor, order: Tensor, damping: float, distortion: Tensor | None, block: int
) -> BlockLines | None:
    """L with ``L Lᵀ = H + damping + Λ``, its diagonal blocks already inverted; one line of blocks after another, from
    the left."""
    lines: BlockLines = []
    for wanted in order.split(block):
        start = lines[-1].shape[1] if lines else 0
        line = moment[wanted][:, order[: start + len(wanted)]].double()
        line[:, start:].diagonal().add_(damping)
        for before, other in enumerate(lines):
            columns = slice(block * before, block * before + len(other))
            left = line[:, columns].addmm_(line[:, : columns.start], other[:, : columns.start].t(), alpha=-1)
            left.copy_(left @ other[:, columns.start :].t())
        kept = None if distortion is None else distortion[start : line.shape[1]]
        corner = raised_cholesky(line[:, start:].addmm_(line[:, :start], line[:, :start].t(), alpha=-1), kept)
        if corner is None:
            return None
        eye = torch.eye(len(line), dtype=line.dtype, device=line.device)
        line[:, start:] = torch.linalg.solve_triangular(corner, eye, upper=False)
        lines.append(line)
    return lines


def _invert(lines: BlockLines, block: int) -> None:
    """L⁻¹ in L's memory: ``M_i = -L_ii⁻¹ (sum over k < i of L_ik M_k)`` for each line of blocks, M_k being those
    above."""
    for index, line in enumerate(lines):
        start = block * index
        total = torch.zeros_like(line[:, :start])
        for before, other in enumerate(lines[:index]):
            columns = slice(block * before, block * before + len(other))
            total[:, : columns.stop].addmm_(line[:, columns], other)
        line[:, :start] = line[:, start:] @ total.neg_()


def _reversed(lines: BlockLines) -> tuple[Tensor, Tensor]:
    """Both axes reversed, in float32, and the diagonal as it was; empties ``lines``."""
    size = lines[-1].shape[1]
    diagonal = torch.cat([line[:, line.shape[1] - len(line) :].diagonal() for line in lines]).flip(0)
    upper = torch.zeros(size, size, device=diagonal.device)  # its zeros are never touched, so they take no memory
    while lines:
        line = lines.pop()
        stop = line.shape[1]
        upper[size - stop : size - stop + len(line), size - stop :] = line.flip(0, 1)
    return upper, diagonal
