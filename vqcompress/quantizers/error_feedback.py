"""Error feedback between columns: the second-moment machinery that all calibrated quantizers share.

Objective, for ``W [out, columns]`` and ``H = E[x xᵀ] [columns, columns]``: minimise ``tr((W - Ŵ) H (W - Ŵ)ᵀ)``. Columns
are quantized one after another; what a column got wrong is pushed into the columns still to come, where it costs least
(GPTQ, Frantar et al. 2023, arXiv 2210.17323, equation 3, with the Cholesky factor of the inverse as in its section
3.3). Because H is the same for every output, this stays exact when a whole column is coded as one vector or sequence.

With ``H⁻¹ = Uᵀ U`` (U upper triangular, processing order) the objective becomes ``sum_j |e_j|² / U_jj²``, where ``e_j``
is the error made on column j after feedback. ``1 / U_jj²`` is therefore what a unit of squared error in column j costs:
its sensitivity, by which `vqcompress.quantizers.column_rates` allocates bits.

Where H is known by ``s`` samples and a ridge, U is never made: everything costs ``s n`` operations an output instead of
``n²``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.errors import CalibrationError
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.inverse_factor import inverse_upper_factor

BLOCK = 128  # columns whose feedback is applied lazily to all later ones in one matrix product
LEAST_DAMPING = 1e-8  # where the search for a damping that works starts, if it was none

EncodeColumn = Callable[[int, Tensor], Tensor]
"""``(column, target [out])`` -> decoded column ``[out]``; keeps its codes to itself."""

Factorize = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor] | None]
"""``(H, order, damping)`` -> U and its diagonal, as `inverse_upper_factor` returns them."""


@dataclass(frozen=True)
class Feedback(ABC):
    """A factored second moment.

    ``order [columns]`` is the processing order (falling H_jj), ``sensitivity [columns]`` the cost of squared error in
    each column, in natural order (float64).
    """

    order: Tensor
    sensitivity: Tensor

    @abstractmethod
    def sweep(self, weight: Tensor, encode: EncodeColumn) -> Tensor:
        """Encode every column of ``weight [columns, out]`` (transposed, float32) with feedback; returns the decoded
        copy."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Feedback:
        """The same on another device."""

    def propagated_error(self) -> Tensor | None:
        """What earlier columns' errors add to each column's target, relative to its own error: float64 ``[columns]``.

        In natural order; ``None`` where it is not known, because U is not.
        """
        return None


def prepare_feedback(
    second_moment: SecondMoment, damping: float = 1e-3, factorize: Factorize = inverse_upper_factor
) -> Feedback:
    """Factor ``second_moment`` in float64 with ``damping`` times its mean diagonal added.

    Rank-deficient moments (fewer samples than columns, dead inputs) are fine: damping is raised tenfold until
    ``factorize`` succeeds. Raises `CalibrationError` when values are not finite or the diagonal is negative.
    """
    if not second_moment.is_finite() or (second_moment.diagonal() < 0).any():
        raise CalibrationError(
            "a second moment holds NaN, infinite or negative diagonal values; the activations it was recorded from "
            "overflowed: record again in float32 or bfloat16"
        )
    if second_moment.samples is not None:
        return _sample_feedback(second_moment, max(damping, 0.0 if second_moment.ridge else LEAST_DAMPING))
    square, diagonal = second_moment.dense(), second_moment.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    unit = float(diagonal.double().mean()) or 1.0
    while (found := factorize(square, order, damping * unit)) is None:
        damping = max(10 * damping, LEAST_DAMPING)
    factor, on_diagonal = found
    sensitivity = torch.empty(len(order), dtype=on_diagonal.dtype, device=factor.device)
    sensitivity[order] = on_diagonal.square().reciprocal()
    return SquareFeedback(order, sensitivity, factor)


@dataclass(frozen=True)
class SquareFeedback(Feedback):
    """``factor [columns, columns]`` is the float32 upper factor U in processing order."""

    factor: Tensor

    def sweep(self, weight: Tensor, encode: EncodeColumn) -> Tensor:
        """Errors of a block are pushed into the targets of all later columns."""
        order, factor = self.order.tolist(), self.factor
        target = weight[self.order].float()
        decoded = torch.empty_like(target)
        for start in range(0, len(order), BLOCK):
            stop = min(start + BLOCK, len(order))
            block = slice(start, stop)
            errors = _sweep_block(target[block], decoded[block], factor[block, block], order[block], encode)
            target[stop:] -= factor[start:stop, stop:].t() @ errors
        result = torch.empty_like(decoded)
        result[self.order] = decoded
        return result

    def propagated_error(self) -> Tensor:
        """The variance that errors of earlier columns add to each column's target, by what its own error costs.

        Where all columns cost the same after coding, ``e_i² = θ U_ii²``, the target of column j has gained the variance
        ``Σ_i (U_ij / U_ii)² e_i² = θ Σ_i U_ij²`` over the columns ``i`` before it; this is that sum by ``U_jj²``.
        """
        gained = torch.empty_like(self.sensitivity)
        gained[self.order] = self.factor.double().square().sum(0)
        return (gained * self.sensitivity - 1).clamp_min(0)

    def to(self, device: torch.device | str) -> SquareFeedback:
        """The same on another device."""
        return SquareFeedback(self.order.to(device), self.sensitivity.to(device), self.factor.to(device))


@dataclass(frozen=True)
class SampleFeedback(Feedback):
    """Feedback from ``X [s, columns]`` and a ridge, block by block in processing order.

    ``samples[b] [s, block]`` are X's columns; ``factors[b] [block, block]`` is the upper factor of the inverse of what
    H leaves of the block when all later columns are free to answer; ``answers[b] [s, block]`` say how errors already
    made, ``X d [s, out]``, move the block's targets.
    """

    samples: list[Tensor]
    factors: list[Tensor]
    answers: list[Tensor]

    def sweep(self, weight: Tensor, encode: EncodeColumn) -> Tensor:
        """Instead of pushing errors on, keeps what they do to the samples, ``X d [s, out]``."""
        decoded = torch.empty_like(weight)
        effect = torch.zeros(len(self.samples[0]), weight.shape[1], device=weight.device)
        blocks = zip(self.order.split(BLOCK), self.samples, self.factors, self.answers, strict=True)
        for columns, samples, factor, answer in blocks:
            original = weight[columns].float()
            target, coded = original - answer.t() @ effect, torch.empty_like(original)
            _sweep_block(target, coded, factor, columns.tolist(), encode)
            decoded[columns] = coded
            effect.addmm_(samples, coded - original)
        return decoded

    def to(self, device: torch.device | str) -> SampleFeedback:
        """The same on another device."""
        lists = ([block.to(device) for block in blocks] for blocks in (self.samples, self.factors, self.answers))
        return SampleFeedback(self.order.to(device), self.sensitivity.to(device), *lists)


def _sweep_block(target: Tensor, decoded: Tensor, factor: Tensor, order: list[int], encode: EncodeColumn) -> Tensor:
    """Encode the columns of one block with feedback among them, into ``decoded``; returns errors over U's diagonal."""
    errors = torch.zeros_like(target)
    for j, column in enumerate(order):
        if j > 0:
            target[j] -= factor[:j, j] @ errors[:j]
        decoded[j] = encode(column, target[j])
        errors[j] = (target[j] - decoded[j]) / factor[j, j]
    return errors


def _sample_feedback(moment: SecondMoment, damping: float) -> SampleFeedback:
    """Factor samples with ``damping`` times the mean diagonal added to the ridge; both must not be 0.

    Let T be the columns after a block B, and d the errors, ``c = X d`` over what is coded. The later columns' best
    answer leaves the cost ``ridge (c + X_B d_B)ᵀ G (c + X_B d_B) + ridge |d_B|²`` with ``G = (X_T X_Tᵀ + ridge)⁻¹``: a
    quadratic form in the block's ``K = I + X_Bᵀ G X_B``, least at ``d_B = -K⁻¹ X_Bᵀ G c``. Float64; G goes from the
    last block to the first.
    """
    samples, diagonal = moment.values, moment.diagonal()
    ridge = moment.ridge + damping * float(diagonal.double().mean())
    order = torch.argsort(diagonal, descending=True, stable=True)
    blocks = [samples[:, wanted] for wanted in order.split(BLOCK)]
    gram = ridge * torch.eye(len(samples), dtype=torch.float64, device=moment.device)
    factors, answers, costs = [], [], []
    for block in reversed(blocks):
        wide = block.double()
        response = torch.cholesky_solve(wide, torch.linalg.cholesky(gram))
        eye = torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)
        factor = _inverse_factor(eye + wide.t() @ response)
        costs.append(ridge / factor.diagonal().square())
        factors.append(factor.float())
        answers.append((response @ factor.t() @ factor).float())
        gram.addmm_(wide, wide.t())
    sensitivity = torch.empty(len(order), dtype=torch.float64, device=moment.device)
    sensitivity[order] = torch.cat(costs[::-1])
    return SampleFeedback(order, sensitivity, blocks, factors[::-1], answers[::-1])


def _inverse_factor(matrix: Tensor) -> Tensor:
    """Upper U with ``matrix⁻¹ = Uᵀ U``."""
    lower = torch.linalg.cholesky(matrix.flip(0, 1))
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
