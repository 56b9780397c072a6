"""The error that all quantizers minimise, as one number."""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.matrix_view import to_matrix
from vqcompress.moments.low_rank import RowMoment


def relative_error(weight: Tensor, decoded: Tensor, second_moment: Tensor | RowMoment | None = None) -> float:
    """``tr(E H Eᵀ) / tr(W H Wᵀ)`` with ``E = weight - decoded``: the squared output error relative to the output.

    ``weight`` and ``decoded`` have one dense shape; ``second_moment [columns, columns]`` defaults to the identity.
    """
    return output_power(weight - decoded, second_moment) / output_power(weight, second_moment)


def output_power(weight: Tensor, second_moment: Tensor | RowMoment | None = None) -> float:
    """``tr(W H Wᵀ)``, the mean squared norm of the output; ``second_moment [columns, columns]`` defaults to the identity.

    Products run in the moment's own precision, sums in float64.
    """
    matrix = to_matrix(weight)
    if second_moment is None:
        return float(matrix.double().square().sum())
    if isinstance(second_moment, RowMoment):
        return second_moment.power(matrix.float())
    matrix = matrix.to(second_moment.dtype)
    return float(((matrix @ second_moment) * matrix).sum(dtype=torch.float64))
