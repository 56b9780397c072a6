"""The error that all quantizers minimise, as one number."""

from __future__ import annotations

from torch import Tensor

from vqcompress.matrix_view import to_matrix


def relative_error(weight: Tensor, decoded: Tensor, second_moment: Tensor | None = None) -> float:
    """``tr(E H Eᵀ) / tr(W H Wᵀ)`` with ``E = weight - decoded``: the squared output error relative to the output.

    ``weight`` and ``decoded`` have one dense shape; ``second_moment [columns, columns]`` defaults to the identity.
    """
    w, e = to_matrix(weight).double(), to_matrix(weight - decoded).double()
    if second_moment is None:
        return float(e.square().sum() / w.square().sum())
    moment = second_moment.double()
    return float(((e @ moment) * e).sum() / ((w @ moment) * w).sum())
