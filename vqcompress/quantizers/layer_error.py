"""The error that all quantizers minimise, as one number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import Tensor

from vqcompress.matrix_view import to_matrix
from vqcompress.moments.second_moment import SecondMoment


def relative_error(weight: Tensor, decoded: Tensor, second_moment: Tensor | SecondMoment | None = None) -> float:
    """``tr(E H Eᵀ) / tr(W H Wᵀ)`` with ``E = weight - decoded``: the squared output error relative to the output.

    ``weight`` and ``decoded`` have one dense shape; ``second_moment``, H ``[columns, columns]``, defaults to the
    identity. A layer without output has the error 0 where nothing is added to it, otherwise infinity.
    """
    return next(relative_errors(weight, [decoded], second_moment))


def relative_errors(
    weight: Tensor, decoded: Iterable[Tensor], second_moment: Tensor | SecondMoment | None = None
) -> Iterator[float]:
    """`relative_error` of each of several copies of ``weight``; the output's power is computed once."""
    power = output_power(weight, second_moment)
    for copy in decoded:
        lost = output_power(weight - copy, second_moment)
        yield lost / power if power else math.inf if lost else 0.0


def output_power(weight: Tensor, second_moment: Tensor | SecondMoment | None = None) -> float:
    """``tr(W H Wᵀ)``, the mean squared norm of the output, as `SecondMoment.power`; H defaults to the identity."""
    matrix = to_matrix(weight)
    if second_moment is None:
        return float(matrix.double().square().sum())
    return SecondMoment.of(second_moment).power(matrix)
