"""Codebooks in closed form under the true metric: the least-squares problem in all codewords at once, for given codes.

``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` is quadratic in the codewords and couples them through H. The normal equations are never formed: conjugate
gradients (Hestenes & Stiefel 1952) need only decode, multiply by H, and gather, and start from the codebooks at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment

STEPS = 12  # the error stops falling in its third digit by then
CONVERGED = 1e-10


class CodebookProblem:
    """Codes ``[columns, vectors, M]`` of columns with ``rates [columns]``, and the metric they are judged by.

    ``row_power [vectors * d]`` weights rows (squared scales; zero for padding); ``second_moment`` is H or ``None``, the identity.
    """

    def __init__(self, codes: Tensor, rates: Tensor, row_power: Tensor, second_moment: SecondMoment | None) -> None:
        self._columns, self._vectors, count = codes.shape
        self._users = [torch.nonzero(rates > level).flatten() for level in range(count)]
        self._words = [codes[users, :, level].flatten().long() for level, users in enumerate(self._users)]
        self._row_power = row_power
        self._moment = second_moment

    def refit(self, codebooks: Tensor, target: Tensor) -> Tensor:
        """Better ``codebooks [M, K, d]`` for ``target [columns, vectors * d]``, float32."""
        residual = self._gather(self._metric(target - self._decode(codebooks)), codebooks)
        condition = self._preconditioner(codebooks)
        preconditioned = condition * residual
        direction, power = preconditioned, float((residual * preconditioned).sum())
        start = power
        for _ in range(STEPS):
            if power <= CONVERGED * start or power == 0:
                break
            image = self._gather(self._metric(self._decode(direction)), codebooks)
            step = power / float((direction * image).sum())
            codebooks, residual = codebooks + step * direction, residual - step * image
            preconditioned = condition * residual
            before, power = power, float((residual * preconditioned).sum())
            direction = preconditioned + power / before * direction
        return codebooks

    def _decode(self, codebooks: Tensor) -> Tensor:
        """Values ``[columns, vectors * d]``."""
        values = codebooks.new_zeros(self._columns, self._vectors, codebooks.shape[2])
        for book, users, words in zip(codebooks, self._users, self._words, strict=True):
            values[users] += book[words].view(len(users), self._vectors, -1)
        return values.flatten(1)

    def _metric(self, values: Tensor) -> Tensor:
        """``H values``, rows weighted."""
        return (values if self._moment is None else self._moment @ values) * self._row_power

    def _gather(self, values: Tensor, like: Tensor) -> Tensor:
        """The adjoint of `_decode`: values summed over all uses of each codeword."""
        sums, vectors = torch.zeros_like(like), values.view(self._columns, self._vectors, -1)
        for total, users, words in zip(sums, self._users, self._words, strict=True):
            total.index_add_(0, words, vectors[users].flatten(0, 1))
        return sums

    def _preconditioner(self, like: Tensor) -> Tensor:
        """One over the diagonal of the normal matrix (without cross terms between codebooks); zero for unused codewords."""
        ones = torch.ones(self._columns, 1) if self._moment is None else self._moment.diagonal()[:, None]
        diagonal = self._gather((ones * self._row_power).contiguous(), like)
        return torch.where(diagonal > 0, 1 / diagonal, 0)
