"""Eigenvalues and eigenvectors of second moments, of those too on which a LAPACK gives up.

Where a convolution sees maps of one position, eight of nine columns are zero in every sample, and so are columns behind
a ReLU that never fired: a moment with a thousand equal eigenvalues. The divide-and-conquer solver that torch calls did
not converge on one of `shapes` at half its resolution. Columns without power are therefore left out, which is also
faster, and what still fails is solved by QR iterations.
"""

from __future__ import annotations

import torch
from scipy.linalg import eigh
from torch import Tensor


def eigenvalues(square: Tensor) -> Tensor:
    """Of a positive semidefinite ``square [columns, columns]`` in float64: ``[columns]``, rising, none below zero."""
    live = square.diagonal() > 0
    square = _part(square, live)
    try:
        found = torch.linalg.eigvalsh(square)
    except torch.linalg.LinAlgError:
        found = torch.from_numpy(eigh(square.cpu().numpy(), eigvals_only=True, driver="ev")).to(square)
    return torch.cat([found.new_zeros(len(live) - len(found)), found.clamp_min(0)])


def eigenvectors(square: Tensor) -> Tensor:
    """Of a positive semidefinite ``square [columns, columns]`` in float64: ``[columns, rank]``, those of the largest
    eigenvalues first. Directions of columns without power are left out: ``rank`` is the number of all others."""
    live = square.diagonal() > 0
    square = _part(square, live)
    try:
        found = torch.linalg.eigh(square)[1]
    except torch.linalg.LinAlgError:
        found = torch.from_numpy(eigh(square.cpu().numpy(), driver="ev")[1]).to(square)
    vectors = found.new_zeros(len(live), len(square))
    vectors[live] = found.flip(1)
    return vectors


def _part(square: Tensor, live: Tensor) -> Tensor:
    """Rows and columns of ``square`` that are ``live``: itself where all are: a copy of 6144 columns takes 300 MB."""
    return square if bool(live.all()) else square[live][:, live]
