"""A second moment given by the few rows it was recorded from, and error feedback that never makes its square.

With ``r`` rows for ``n`` columns, ``H = Xᵀ X + ridge I`` (``X [r, n]``) is known by ``r n`` numbers, and everything that error
feedback does with H costs ``r n`` instead of ``n²`` a row of the weight. A calibration at reduced resolution shows a 3x3 convolution
with 23 040 columns some hundred rows: 25 MB for 2.1 GB, and seconds for minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # columns whose feedback is applied to all later ones at once


@dataclass(frozen=True)
class RowMoment:
    """``H = inputsᵀ inputs + ridge I`` with ``inputs [rows, columns]``, float32, and ``ridge >= 0``."""

    inputs: Tensor
    ridge: float

    @property
    def shape(self) -> tuple[int, int]:
        """That of H, ``(columns, columns)``."""
        return self.inputs.shape[1], self.inputs.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.inputs.device

    def diagonal(self) -> Tensor:
        """H's diagonal, float32 ``[columns]``."""
        return self.inputs.square().sum(0) + self.ridge

    def dense(self) -> Tensor:
        """H itself, float32 ``[columns, columns]``."""
        square = self.inputs.t() @ self.inputs
        square.diagonal().add_(self.ridge)
        return square

    def cpu(self) -> RowMoment:
        """The same on the CPU."""
        return RowMoment(self.inputs.cpu(), self.ridge)

    def __matmul__(self, values: Tensor) -> Tensor:
        """``H @ values`` for ``values [columns, m]``, float32."""
        return torch.addmm(values, self.inputs.t(), self.inputs @ values, beta=self.ridge)

    def power(self, matrix: Tensor) -> float:
        """``tr(M H Mᵀ)`` for ``matrix [m, columns]``, summed in float64."""
        seen = (self.inputs @ matrix.t()).square().sum(dtype=torch.float64)
        return float(seen + self.ridge * matrix.square().sum(dtype=torch.float64))


@dataclass(frozen=True)
class RowFeedback:
    """What `sweep_rows` needs. ``order [columns]`` is the processing order (falling H_jj), ``sensitivity [columns]`` the cost of
    squared error in each column, in natural order (float64), as in `error_feedback.Feedback`.

    Block by block in that order: ``inputs[b] [rows, block]``; ``factors[b] [block, block]``, the upper factor of the inverse of what H
    leaves of the block when all later columns are free to answer; ``answers[b] [rows, block]``, by which errors already made,
    ``X d [rows, m]``, move the block's targets.
    """

    order: Tensor
    sensitivity: Tensor
    inputs: list[Tensor]
    factors: list[Tensor]
    answers: list[Tensor]

    def to(self, device: torch.device | str) -> RowFeedback:
        """The same on another device."""
        parts = ([part.to(device) for part in parts] for parts in (self.inputs, self.factors, self.answers))
        return RowFeedback(self.order.to(device), self.sensitivity.to(device), *parts)


def prepare_row_feedback(moment: RowMoment, damping: float) -> RowFeedback:
    """Factor ``moment`` with ``damping`` times its mean diagonal added to the ridge; both must not be 0.

    Let T be the columns after a block B, and d the errors, ``c = X d`` over what is coded. The later columns' best answer leaves the
    cost ``ridge (c + X_B d_B)ᵀ G (c + X_B d_B) + ridge |d_B|²`` with ``G = (X_T X_Tᵀ + ridge)⁻¹``: a quadratic form in the block's
    ``K = I + X_Bᵀ G X_B``, least at ``d_B = -K⁻¹ X_Bᵀ G c``. Float64; G goes from the last block to the first.
    """
    diagonal = moment.diagonal()
    ridge = moment.ridge + damping * float(diagonal.double().mean())
    order = torch.argsort(diagonal, descending=True, stable=True)
    blocks = [moment.inputs[:, wanted] for wanted in order.split(BLOCK)]
    rows = len(moment.inputs)
    gram = ridge * torch.eye(rows, dtype=torch.float64, device=moment.device)
    factors, answers, costs = [], [], []
    for block in reversed(blocks):
        wide = block.double()
        seen = torch.cholesky_solve(wide, torch.linalg.cholesky(gram))
        factor = _inverse_factor(torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device) + wide.t() @ seen)
        costs.append(ridge / factor.diagonal().square())
        factors.append(factor.float())
        answers.append((seen @ factor.t() @ factor).float())
        gram.addmm_(wide, wide.t())
    sensitivity = torch.empty(len(order), dtype=torch.float64, device=moment.device)
    sensitivity[order] = torch.cat(costs[::-1])
    return RowFeedback(order, sensitivity, blocks, factors[::-1], answers[::-1])


def _inverse_factor(matrix: Tensor) -> Tensor:
    """Upper U with ``matrix⁻¹ = Uᵀ U``."""
    lower = torch.linalg.cholesky(matrix.flip(0, 1))
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
