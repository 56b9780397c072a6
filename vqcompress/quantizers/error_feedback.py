"""Error feedback between columns: the second-moment machinery that all calibrated quantizers share.

Objective, for ``W [rows, columns]`` and ``H = E[x xᵀ] [columns, columns]``: minimise ``tr((W - Ŵ) H (W - Ŵ)ᵀ)``. Columns are
quantized one after another; what a column got wrong is pushed into the columns still to come, where it costs least
(GPTQ, Frantar et al. 2023, arXiv 2210.17323, equation 3, with the Cholesky factor of the inverse as in its section 3.3).
Because H is the same for every row, this stays exact when a whole column is coded as one vector or sequence.

With ``H⁻¹ = Uᵀ U`` (U upper triangular, processing order) the objective becomes ``sum_j |e_j|² / U_jj²``, where ``e_j`` is the
error made on column j after feedback. ``1 / U_jj²`` is therefore what a unit of squared error in column j costs: its
sensitivity, by which `vqcompress.quantizers.column_rates` deals out bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.errors import CalibrationError

BLOCK = 128  # columns whose feedback is applied lazily to all later ones in one matrix product
LEAST_DAMPING = 1e-8  # where the search for a damping that works starts, if it was none

EncodeColumn = Callable[[int, Tensor], Tensor]
"""``(column, target [rows])`` -> decoded column ``[rows]``; keeps its codes to itself."""


@dataclass(frozen=True)
class Feedback:
    """A factored second moment.

    ``order [columns]`` is the processing order (falling H_jj), ``factor [columns, columns]`` the float32 upper factor U in
    that order, ``sensitivity [columns]`` the cost of squared error in each column, in natural order (float64).
    """

    order: Tensor
    factor: Tensor
    sensitivity: Tensor

    def to(self, device: torch.device | str) -> Feedback:
        """The same on another device."""
        return Feedback(self.order.to(device), self.factor.to(device), self.sensitivity.to(device))


def prepare_feedback(second_moment: Tensor, damping: float = 1e-3) -> Feedback:
    """Factor ``second_moment [columns, columns]`` in float64 with ``damping`` times its mean diagonal added.

    Rank-deficient moments (fewer rows than columns, dead inputs) are fine: damping is raised tenfold until the
    factorization succeeds. Raises `CalibrationError` when values are not finite or the diagonal is negative.
    """
    diagonal = second_moment.diagonal()
    if not torch.isfinite(second_moment).all() or (diagonal < 0).any():
        raise CalibrationError(
            "a second moment holds NaN, infinite or negative diagonal values; the activations it was recorded from "
            "overflowed: record again in float32 or bfloat16"
        )
    order = torch.argsort(diagonal, descending=True, stable=True)
    factor = _inverse_factor(second_moment, order, damping)
    sensitivity = torch.empty(len(order), dtype=factor.dtype, device=factor.device)
    sensitivity[order] = factor.diagonal().square().reciprocal()
    return Feedback(order, factor.float(), sensitivity)


def _inverse_factor(moment: Tensor, order: Tensor, damping: float) -> Tensor:
    """Upper U with ``(H + damping)⁻¹ = Uᵀ U`` for H = ``moment`` in ``order``, float64; holds two such matrices at a time."""
    # Reversing rows and columns turns the lower factor of H into the upper factor of its inverse: H = R Rᵀ with R upper,
    # hence H⁻¹ = R⁻ᵀ R⁻¹ and U = R⁻¹ needs one triangular inverse, no explicit H⁻¹.
    backward = order.flip(0)
    reverse = moment[backward][:, backward].double()
    unit, added = float(reverse.diagonal().mean()) or 1.0, 0.0
    while True:
        reverse.diagonal().add_((damping - added) * unit)
        lower, failed = torch.linalg.cholesky_ex(reverse)
        if not failed:
            del reverse
            return _invert_upper(lower.flip(0, 1))
        added, damping = damping, max(10 * damping, LEAST_DAMPING)


def _invert_upper(matrix: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix, in its own memory, mostly by matrix products."""
    if len(matrix) <= 256:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return matrix.copy_(torch.linalg.solve_triangular(matrix, eye, upper=True))
    half = len(matrix) // 2
    first, last = _invert_upper(matrix[:half, :half]), _invert_upper(matrix[half:, half:])
    matrix[:half, half:] = -(first @ matrix[:half, half:]) @ last
    return matrix


def sweep(weight: Tensor, feedback: Feedback, encode: EncodeColumn) -> Tensor:
    """Encode every column of ``weight [columns, rows]`` (transposed, float32) with feedback; returns the decoded copy."""
    order, factor = feedback.order.tolist(), feedback.factor
    target = weight[feedback.order].float()
    decoded = torch.empty_like(target)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = torch.zeros(stop - start, target.shape[1], device=target.device)
        for j in range(start, stop):
            if j > start:
                target[j] -= factor[start:j, j] @ errors[: j - start]
            decoded[j] = encode(order[j], target[j])
            errors[j - start] = (target[j] - decoded[j]) / factor[j, j]
        target[stop:] -= factor[start:stop, stop:].t() @ errors
    result = torch.empty_like(decoded)
    result[feedback.order] = decoded
    return result


def refine(weight: Tensor, decoded: Tensor, second_moment: Tensor, encode: EncodeColumn) -> tuple[Tensor, Tensor]:
    """One pass of cyclic coordinate descent over columns (``weight`` and ``decoded`` are ``[columns, rows]``, float32).

    With all other columns fixed, the objective in column j is ``H_jj |v - t|²`` plus a constant, with target
    ``t = ŵ_j + sum_i H_ji (w_i - ŵ_i) / H_jj``. A new code is accepted only where it is closer to the target than the old one, so the
    pass never raises the objective. Returns the decoded copy and a mask ``[columns]`` of the accepted columns, whose
    new codes the caller keeps.
    """
    moment, decoded = second_moment.float(), decoded.clone()
    accepted = torch.zeros(len(decoded), dtype=torch.bool)
    gradient = moment @ (weight - decoded)
    for start in range(0, len(decoded), BLOCK):
        stop = min(start + BLOCK, len(decoded))
        changes = torch.zeros_like(decoded[start:stop])
        for j in range(start, stop):
            if moment[j, j] <= 0:
                continue
            pull = gradient[j] - moment[j, start:stop] @ changes
            target = decoded[j] + pull / moment[j, j]
            candidate = encode(j, target)
            if (candidate - target).square().sum() < (decoded[j] - target).square().sum():
                changes[j - start] = candidate - decoded[j]
                decoded[j], accepted[j] = candidate, True
        gradient -= moment[:, start:stop] @ changes
    return decoded, accepted
