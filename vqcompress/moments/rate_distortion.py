"""The least error that any code of so many bits can leave: reverse water-filling over a second moment's eigenvalues.

For Gaussian weights of variance 1, the components of an output channel along H's eigenvectors are independent sources,
of cost ``h_i`` at rate 0. At ``R`` bits a weight no code leaves less than ``Σ min(h_i, θ)``, with the water level θ at
which ``mean(max(0, log2(h_i / θ) / 2)) = R`` (Cover & Thomas, Elements of Information Theory, theorem 10.3.3). Weights
with heavier tails or structure have a lower bound; for these this one is a ruler only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqcompress.moments import eigen
from vqcompress.moments.second_moment import SecondMoment

MOST_COLUMNS = 2048  # or kept samples


def water_level(costs: Tensor, bits: float, shares: Tensor | None = None) -> float:
    """The cost of error that reverse water-filling leaves in each column: ``θ`` with ``Σ max(0, log2(c_j / θ) / 2) = n
    bits``.

    ``costs c [n]``, float64, are those of leaving a column at zero (Cover & Thomas, Elements of Information Theory,
    section 10.3.3). ``shares [n]``, which sum to 1, say how much of all columns each of them stands for.
    """
    falling, order = costs[costs > 0].sort(descending=True)
    if not len(falling):
        return 0.0
    each = torch.full_like(falling, 1 / len(costs)) if shares is None else shares[costs > 0][order]
    falling = falling.log2()
    levels = ((each * falling).cumsum(0) - 2 * bits) / each.cumsum(0).clamp_min(1e-300)
    active = int((falling > levels).sum())
    return float(2 ** levels[max(active, 1) - 1])


def spectrum(second_moment: SecondMoment) -> Tensor:
    """Eigenvalues of H, float64 ``[columns]``, of any order and none below 0; from few samples by their Gram matrix."""
    if second_moment.samples is None:
        return eigen.eigenvalues(second_moment.dense().double())
    samples = second_moment.values.double()
    found = torch.linalg.eigvalsh(samples @ samples.t()).clamp_min(0)
    return torch.cat([found, found.new_zeros(second_moment.columns - len(found))]) + second_moment.ridge


def distortion_bound(eigenvalues: Tensor, bits: float) -> float:
    """The least ``tr(E H Eᵀ) / tr(W H Wᵀ)`` of Gaussian weights at ``bits`` bits a weight; H has these ``eigenvalues
    [n]``."""
    total = float(eigenvalues.sum())
    return float(eigenvalues.clamp_max(water_level(eigenvalues, bits)).sum()) / total if total > 0 else 0.0


def gap_in_bits(eigenvalues: Tensor, bits: float, error: float) -> float:
    """How many bits a weight a code of ``bits`` bits spends above the bound for its relative ``error``.

    The slope of the bound at these bits where all eigenvalues are above the water level: half the binary logarithm of
    ``error / distortion_bound``. ``nan`` where either is 0.
    """
    bound = distortion_bound(eigenvalues, bits)
    return math.log2(error / bound) / 2 if error > 0 and bound > 0 else math.nan


def gap_of_layer(second_moment: SecondMoment | None, bits: float, error: float) -> float | None:
    """`gap_in_bits` under ``second_moment``, by default the identity; ``None`` where there is none to tell.

    That is where the error or the bound is 0, and beyond `MOST_COLUMNS` columns, whose eigenvalues would take as long
    as the codes.
    """
    if second_moment is not None and len(second_moment.values) > MOST_COLUMNS:
        return None
    eigenvalues = torch.ones(1, dtype=torch.float64) if second_moment is None else spectrum(second_moment)
    gap = gap_in_bits(eigenvalues, bits, error)
    return gap if math.isfinite(gap) else None
