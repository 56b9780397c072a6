"""Additive codebooks: learned from sample vectors, and refitted to the codes of a whole weight.

Start: residual k-means (one codebook after another, on what the ones before leave over), by faiss. Then rounds of beam
search and least squares on the codewords given the codes (Babenko & Lempitsky 2014, Additive Quantization for Extreme
Vector Compression), which recovers most of what a greedy start loses. Vectors have rates: one of rate ``r`` uses the
first ``r`` codebooks only, so every prefix of the codebooks is a good code too.

Once a weight is coded, its own codebooks are refitted in closed form under the true metric. ``tr((W - Ŵ) H (W - Ŵ)ᵀ)``
is quadratic in the codewords and couples them through H. The normal equations are never formed: conjugate gradients
(Hestenes & Stiefel 1952) need only decode, multiply by H, and gather, and start from the codebooks at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.search.beam import BeamSearch, sum_codewords

KMEANS_ROUNDS = 6  # for a start that is refined later
REFIT_SWEEPS = 3  # codebooks are refitted in turn; more turns change nothing that the next search would not
CONJUGATE_STEPS = 12  # the error stops falling in its third digit by then
CONVERGED = 1e-10


def residual_codebooks(
    vectors: Tensor,
    count: int,
    size: int,
    beam: int,
    seed: int,
    weights: Tensor | None = None,
    rounds: int = KMEANS_ROUNDS,
) -> Tensor:
    """``count`` codebooks of ``size`` codewords by residual k-means: float32 ``[count, size, d]``.

    ``vectors [n, d]`` count by ``weights [n]``, or all alike.
    """
    codebooks = vectors.new_zeros(0, size, vectors.shape[1])
    residual = vectors
    for level in range(count):
        codebooks = torch.cat([codebooks, kmeans(residual, size, seed + level, weights, rounds)[None]])
        codes = BeamSearch(codebooks, beam)(vectors, level + 1)
        residual = vectors - sum_codewords(codes, codebooks)
    return codebooks


def kmeans(vectors: Tensor, size: int, seed: int, weights: Tensor | None = None, rounds: int = KMEANS_ROUNDS) -> Tensor:
    """Centroids, float32 ``[size, d]``, of ``vectors [n, d]`` with ``weights [n]``; the vectors themselves when they
    are few."""
    if len(vectors) <= size:
        return torch.cat([vectors, vectors.new_zeros(size - len(vectors), vectors.shape[1])])
    import faiss

    with single_thread(faiss):
        clustering = faiss.Kmeans(
            vectors.shape[1],
            size,
            niter=rounds,
            seed=seed % (1 << 31),
            min_points_per_centroid=1,
            max_points_per_centroid=1 << 20,
        )
        clustering.train(vectors.contiguous().numpy(), weights=None if weights is None else weights.numpy())
    return torch.from_numpy(np.array(clustering.centroids))


@contextmanager
def single_thread(faiss: Any) -> Iterator[None]:
    """faiss on one thread: its parallel sums depend on the number of threads, the codes that come out must not."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def refine_codebooks(codebooks: Tensor, vectors: Tensor, rates: Tensor, beam: int, rounds: int) -> Tensor:
    """``rounds`` of search and least squares on ``vectors [n, d]``, of which each uses its own rate, int64 ``[n]``."""
    for _ in range(rounds):
        codebooks = _least_squares(codebooks, vectors, rates, search_rates(codebooks, vectors, rates, beam))
    return codebooks


def search_rates(codebooks: Tensor, vectors: Tensor, rates: Tensor, beam: int) -> Tensor:
    """Codes int32 ``[n, M]``; columns at and beyond a vector's rate are 0 and mean nothing."""
    search = BeamSearch(codebooks, beam)
    codes = torch.zeros(len(vectors), len(codebooks), dtype=torch.int32)
    for rate in torch.unique(rates).tolist():
        chosen = torch.nonzero(rates == rate).flatten()
        codes[chosen, :rate] = search(vectors[chosen], rate)
    return codes


def _least_squares(codebooks: Tensor, vectors: Tensor, rates: Tensor, codes: Tensor) -> Tensor:
    """Codewords of least squared error for given codes, by block coordinate descent over codebooks."""
    codebooks, residual = codebooks.clone(), vectors.clone()
    users = [torch.nonzero(rates > level).flatten() for level in range(len(codebooks))]
    words = [codes[chosen, level].long() for level, chosen in enumerate(users)]
    for level, chosen in enumerate(users):
        residual[chosen] -= codebooks[level][words[level]]
    for _ in range(REFIT_SWEEPS):
        for level, chosen in enumerate(users):
            change = _class_means(residual[chosen], words[level], codebooks.shape[1])
            codebooks[level] += change
            residual[chosen] -= change[words[level]]
    return codebooks


def _class_means(vectors: Tensor, classes: Tensor, count: int) -> Tensor:
    """Mean of the ``vectors [n, d]`` of each class, ``[count, d]``; zero for empty classes."""
    sums = vectors.new_zeros(count, vectors.shape[1]).index_add_(0, classes, vectors)
    return sums / torch.bincount(classes, minlength=count).clamp(min=1)[:, None]


def prefix_errors(codebooks: Tensor, vectors: Tensor, beam: int) -> dict[int, float]:
    """Mean squared error per weight of the first ``r`` codebooks, relative to the vectors' power, for r = 0 .. M."""
    power = float(vectors.square().mean()) or 1.0
    search, errors = BeamSearch(codebooks, beam), {0: 1.0}
    for rate in range(1, len(codebooks) + 1):
        decoded = sum_codewords(search(vectors, rate), codebooks)
        errors[rate] = float((vectors - decoded).square().mean()) / power
    return errors


class CodebookProblem:
    """The least-squares problem in all codewords at once, for codes ``[columns, vectors, M]`` of columns with ``rates
    [columns]``.

    ``output_weights [vectors * d]`` are squared scales of the outputs, zero for padding; ``second_moment`` is H, or
    ``None`` for the identity.
    """

    def __init__(
        self, codes: Tensor, rates: Tensor, output_weights: Tensor, second_moment: SecondMoment | None
    ) -> None:
        self._columns, self._vectors, count = codes.shape
        self._users = [torch.nonzero(rates > level).flatten() for level in range(count)]
        self._words = [codes[users, :, level].flatten().long() for level, users in enumerate(self._users)]
        self._output_weights = output_weights
        self._moment = second_moment

    def refit(self, codebooks: Tensor, target: Tensor) -> Tensor:
        """Better ``codebooks [M, K, d]`` for ``target [columns, vectors * d]``, float32."""
        residual = self._gather(self._metric(target - self._decode(codebooks)), codebooks)
        condition = self._preconditioner(codebooks)
        preconditioned = condition * residual
        direction, power = preconditioned, float((residual * preconditioned).sum())
        start = power
        for _ in range(CONJUGATE_STEPS):
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
        for codebook, users, words in zip(codebooks, self._users, self._words, strict=True):
            values[users] += codebook[words].view(len(users), self._vectors, -1)
        return values.flatten(1)

    def _metric(self, values: Tensor) -> Tensor:
        """``H values``, outputs weighted."""
        return (values if self._moment is None else self._moment @ values) * self._output_weights

    def _gather(self, values: Tensor, like: Tensor) -> Tensor:
        """The adjoint of `_decode`: values summed over all uses of each codeword."""
        sums, vectors = torch.zeros_like(like), values.view(self._columns, self._vectors, -1)
        for total, users, words in zip(sums, self._users, self._words, strict=True):
            total.index_add_(0, words, vectors[users].flatten(0, 1))
        return sums

    def _preconditioner(self, like: Tensor) -> Tensor:
        """One over the diagonal of the normal matrix (without cross terms between codebooks); zero for unused
        codewords."""
        ones = torch.ones(self._columns, 1) if self._moment is None else self._moment.diagonal()[:, None]
        diagonal = self._gather((ones * self._output_weights).contiguous(), like)
        return torch.where(diagonal > 0, 1 / diagonal, 0)
