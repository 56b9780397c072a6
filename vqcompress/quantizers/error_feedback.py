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
from vqcompress.moments.low_rank import BLOCK as ROW_BLOCK
from vqcompress.moments.low_rank import RowFeedback, RowMoment, prepare_row_feedback
from vqcompress.quantizers.factorization import inverse_upper_factor

LARGE = 2048  # columns from which the factorization goes block by block: less memory, and faster
FINITE_ROWS = 4096  # checked at once
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

    def inherited(self) -> Tensor:
        """What errors of columns before leave to each column, by what its own error leaves behind: float64 ``[columns]``, natural order.

        Where all columns cost the same after coding, ``e_i² = θ U_ii²``, a column's target has gained the variance
        ``Σ_i (U_ij / U_ii)² e_i² = θ Σ_i U_ij²`` over the columns ``i`` before it; this is that sum by ``U_jj²``.
        """
        gained = torch.empty_like(self.sensitivity)
        gained[self.order] = self.factor.double().square().sum(0)
        return (gained * self.sensitivity - 1).clamp_min(0)

    def to(self, device: torch.device | str) -> Feedback:
        """The same on another device."""
        return Feedback(self.order.to(device), self.factor.to(device), self.sensitivity.to(device))


def prepare_feedback(second_moment: Tensor | RowMoment, damping: float = 1e-3) -> Feedback | RowFeedback:
    """Factor ``second_moment [columns, columns]`` in float64 with ``damping`` times its mean diagonal added.

    Rank-deficient moments (fewer rows than columns, dead inputs) are fine: damping is raised tenfold until the
    factorization succeeds. Raises `CalibrationError` when values are not finite or the diagonal is negative.
    """
    diagonal = second_moment.diagonal()
    if (
        not all_finite(second_moment.inputs if isinstance(second_moment, RowMoment) else second_moment)
        or (diagonal < 0).any()
    ):
        raise CalibrationError(
            "a second moment holds NaN, infinite or negative diagonal values; the activations it was recorded from "
            "overflowed: record again in float32 or bfloat16"
        )
    if isinstance(second_moment, RowMoment):
        return prepare_row_feedback(second_moment, max(damping, 0.0 if second_moment.ridge else LEAST_DAMPING))
    order = torch.argsort(diagonal, descending=True, stable=True)
    factored = inverse_upper_factor if len(order) > LARGE else _factored_whole
    unit = float(diagonal.double().mean()) or 1.0
    while (found := factored(second_moment, order, damping * unit)) is None:
        damping = max(10 * damping, LEAST_DAMPING)
    factor, on_diagonal = found
    sensitivity = torch.empty(len(order), dtype=on_diagonal.dtype, device=factor.device)
    sensitivity[order] = on_diagonal.square().reciprocal()
    return Feedback(order, factor, sensitivity)


def all_finite(matrix: Tensor) -> bool:
    """Whether no element of ``matrix`` is infinite or NaN; a part at a time, for the check makes copies."""
    return all(bool(torch.isfinite(part).all()) for part in matrix.split(FINITE_ROWS))


def _factored_whole(moment: Tensor, order: Tensor, damping: float) -> tuple[Tensor, Tensor] | None:
    """Like `inverse_upper_factor`, in one piece; holds two float64 squares at a time."""
    # Reversing rows and columns turns the lower factor of H into the upper factor of its inverse: H = R Rᵀ with R upper,
    # hence H⁻¹ = R⁻ᵀ R⁻¹ and U = R⁻¹ needs one triangular inverse, no explicit H⁻¹.
    backward = order.flip(0)
    reverse = moment[backward][:, backward].double()
    reverse.diagonal().add_(damping)
    lower, failed = torch.linalg.cholesky_ex(reverse)
    if failed:
        return None
    del reverse
    factor = _invert_upper(lower.flip(0, 1))
    return factor.float(), factor.diagonal()


def _invert_upper(matrix: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix, in its own memory, mostly by matrix products."""
    if len(matrix) <= 256:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return matrix.copy_(torch.linalg.solve_triangular(matrix, eye, upper=True))
    half = len(matrix) // 2
    first, last = _invert_upper(matrix[:half, :half]), _invert_upper(matrix[half:, half:])
    matrix[:half, half:] = -(first @ matrix[:half, half:]) @ last
    return matrix


def sweep(weight: Tensor, feedback: Feedback | RowFeedback, encode: EncodeColumn) -> Tensor:
    """Encode every column of ``weight [columns, rows]`` (transposed, float32) with feedback; returns the decoded copy."""
    if isinstance(feedback, RowFeedback):
        return _sweep_rows(weight, feedback, encode)
    order, factor = feedback.order.tolist(), feedback.factor
    target = weight[feedback.order].float()
    decoded = torch.empty_like(target)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        block = slice(start, stop)
        errors = _sweep_block(target[block], decoded[block], factor[block, block], order[block], encode)
        target[stop:] -= factor[start:stop, stop:].t() @ errors
    result = torch.empty_like(decoded)
    result[feedback.order] = decoded
    return result


def _sweep_block(target: Tensor, decoded: Tensor, factor: Tensor, order: list[int], encode: EncodeColumn) -> Tensor:
    """Encode the columns of one block with feedback among them, into ``decoded``; returns their errors over the factor's diagonal."""
    errors = torch.zeros_like(target)
    for j, column in enumerate(order):
        if j > 0:
            target[j] -= factor[:j, j] @ errors[:j]
        decoded[j] = encode(column, target[j])
        errors[j] = (target[j] - decoded[j]) / factor[j, j]
    return errors


def _sweep_rows(weight: Tensor, feedback: RowFeedback, encode: EncodeColumn) -> Tensor:
    """`sweep` with what the errors so far do to the few recorded inputs, ``X d [rows, m]``, in place of pushing them on."""
    decoded = torch.empty_like(weight)
    effect = torch.zeros(len(feedback.inputs[0]), weight.shape[1], device=weight.device)
    parts = zip(feedback.order.split(ROW_BLOCK), feedback.inputs, feedback.factors, feedback.answers, strict=True)
    for columns, inputs, factor, answer in parts:
        original = weight[columns].float()
        target, coded = original - answer.t() @ effect, torch.empty_like(original)
        _sweep_block(target, coded, factor, columns.tolist(), encode)
        decoded[columns] = coded
        effect.addmm_(inputs, coded - original)
    return decoded


def refine(
    weight: Tensor,
    decoded: Tensor,
    second_moment: Tensor | RowMoment,
    encode: EncodeColumn,
    outputs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass of cyclic coordinate trainer over columns (``weight`` and ``decoded`` are ``[columns, rows]``, float32).

    With all other columns fixed, the objective in column j is ``H_jj |v - t|²`` plus a constant, with target
    ``t = ŵ_j + sum_i H_ji (w_i - ŵ_i) / H_jj``. A new code is accepted only where it is closer to the target than the old one, so the
    pass never raises the objective. ``outputs [rows, rows]`` measures how close (see `energy`). Returns the decoded copy and a mask ``[columns]`` of the accepted columns, whose
    new codes the caller keeps.
    """
    if isinstance(second_moment, RowMoment):
        return _refine_rows(weight, decoded.clone(), second_moment, encode, outputs)
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
            if energy(candidate - target, outputs) < energy(decoded[j] - target, outputs):
                changes[j - start] = candidate - decoded[j]
                decoded[j], accepted[j] = candidate, True
        gradient -= moment[:, start:stop] @ changes
    return decoded, accepted


def _refine_rows(
    weight: Tensor, decoded: Tensor, moment: RowMoment, encode: EncodeColumn, outputs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`refine`, in ``decoded``, with what is still wrong on the few recorded inputs in place of a gradient."""
    accepted = torch.zeros(len(decoded), dtype=torch.bool)
    wrong, diagonal = moment.inputs @ (weight - decoded), moment.diagonal()
    for j in range(len(decoded)):
        if diagonal[j] <= 0:
            continue
        pull = moment.inputs[:, j] @ wrong + moment.ridge * (weight[j] - decoded[j])
        target = decoded[j] + pull / diagonal[j]
        candidate = encode(j, target)
        if energy(candidate - target, outputs) < energy(decoded[j] - target, outputs):
            wrong -= torch.outer(moment.inputs[:, j], candidate - decoded[j])
            decoded[j], accepted[j] = candidate, True
    return decoded, accepted


def energy(error: Tensor, outputs: Tensor | None = None) -> float:
    """``eᵀ G e`` of one column's error ``[rows]``, with ``outputs`` for G ``[rows, rows]``, by default the identity."""
    return float(error.square().sum() if outputs is None else error @ outputs @ error)


def damped(output_moment: Tensor, share: float) -> Tensor:
    """``output_moment [rows, rows]`` as float32 with a mean diagonal of 1, ``share`` of that added: positive definite."""
    moment = output_moment.double()
    moment = moment / (float(moment.diagonal().mean()) or 1.0)
    moment.diagonal().add_(share)
    return moment.float()
