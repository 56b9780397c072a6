"""How much power other prompts have along a moment's eigenvectors: that of prompts which were not in it.

A layer that modulates by timestep and prompt (adaLN, time embeddings, pooled text) is given one vector an image. Of 64
prompts at 20 timesteps it sees 1280, but directions in which only prompts differ are known from 64 of them. A layer
that reads text sees the same tokens at every timestep. The smaller eigenvalues of such moments are far too small, and
no count of samples says so. Error feedback trusts those most: at 4 bits modulation layers of `shapes-moe` had fifty
times the error on other classes, and have the same now (`benchmarks/unseen_prompts.py`).

So moments are recorded apart for disjoint sets of prompts, and each eigenvalue becomes the power that the other sets
have along its eigenvector: the estimate of the best rotation-invariant one (Ledoit & Péché 2011) by cross-validation,
made monotonic (Bartz 2016, Cross-validation based nonlinear shrinkage, arXiv 1611.00798).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256

import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from vqcompress.moments.eigen import eigenvectors
from vqcompress.moments.second_moment import SecondMoment

FOLDS = 4  # two hold back more from the prompts that were shown, and eight no less, in twice the memory
LARGEST = 6144  # columns: with more, folds take gigabytes and their eigenvectors minutes
REMEMBERED = 2  # results: each layer of a group asks for that of the group

_known: OrderedDict[bytes, SecondMoment] = OrderedDict()


def cross_validated(moment: SecondMoment) -> SecondMoment:
    """``moment`` with eigenvalues that hold for prompts that are not in it, computed in float64, without folds.

    It must have at least two folds. Samples remain samples, of the eigenvectors that every fold knows; all other
    directions have the power that is left, in ``ridge``.
    """
    key = _digest(moment)
    if key not in _known:
        _known[key] = _cross_validated(moment)
        while len(_known) > REMEMBERED:
            _known.popitem(last=False)
    _known.move_to_end(key)
    return _known[key].to(moment.device)


def _cross_validated(moment: SecondMoment) -> SecondMoment:
    bases, powers = [], []
    for index, fold in enumerate(moment.folds):
        others = SecondMoment.of_folds(moment.folds[:index] + moment.folds[index + 1 :])
        bases.append(_eigenvectors(others))
        powers.append(_power_along(fold, bases[-1]) * (fold.seen / moment.seen))
    vectors = _eigenvectors(moment)
    rank = min(basis.shape[1] for basis in (vectors, *bases))
    vectors, power = vectors[:, :rank], torch.stack([each[:rank] for each in powers]).sum(0)
    left = moment.columns - rank
    total = float(moment.diagonal().double().sum())
    beyond = max(total - float(power.sum()), 0.0) / left if left else 0.0
    falling = _falling(power.cpu(), beyond, left).to(power)
    if moment.samples is not None:
        floor = float(falling[-1]) if left else 0.0
        scaled = (falling[:rank] - floor).clamp_min(0).sqrt()[:, None] * vectors.t()
        return replace(moment, samples=scaled.to(moment.values.dtype), ridge=floor, folds=())
    floor = falling[-1] if left else falling.new_zeros(())
    square = (vectors * (falling[:rank] - floor)) @ vectors.t()
    square.diagonal().add_(floor)
    return replace(moment, square=square.to(moment.values.dtype), folds=())


def _eigenvectors(moment: SecondMoment) -> Tensor:
    """``[columns, rank]``, float64, those of the largest eigenvalues first: as many as columns with power or samples
    determine."""
    if moment.samples is None:
        return eigenvectors(moment.dense().double())
    samples = moment.values.double()
    found, turns = torch.linalg.eigh(samples @ samples.t())
    known = found > found[-1].clamp_min(torch.finfo(found.dtype).tiny) * 1e-10
    return (samples.t() @ turns[:, known] / found[known].sqrt()).flip(1)


def _power_along(moment: SecondMoment, vectors: Tensor) -> Tensor:
    """``vᵀ H v`` for each of ``vectors [columns, rank]``, float64 ``[rank]``."""
    if moment.samples is not None:
        return (moment.values.double() @ vectors).square().sum(0)
    return ((moment.dense().double() @ vectors) * vectors).sum(0)


def _falling(power: Tensor, beyond: float, left: int) -> Tensor:
    """The nearest falling sequence to ``power [rank]`` and, after it, ``beyond``, which stands for ``left`` values."""
    values, weights = power.tolist() + [beyond] * bool(left), [1.0] * len(power) + [float(left)] * bool(left)
    fitted = IsotonicRegression(increasing=False).fit_transform(range(len(values)), values, sample_weight=weights)
    return torch.from_numpy(fitted).double().clamp_min(0)


def _digest(moment: SecondMoment) -> bytes:
    digest = sha256()
    for fold in moment.folds:
        digest.update(repr((fold.seen, fold.used, fold.ridge, fold.samples is None)).encode())
        digest.update(fold.values.contiguous().cpu().numpy().tobytes())
    return digest.digest()
