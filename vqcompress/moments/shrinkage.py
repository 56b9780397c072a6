"""Second moments of layers that saw few samples: an expert that was seldom chosen, a layer fed by timesteps alone.

With ``n`` samples for ``p`` columns the small eigenvalues of the sample's moment are far too small, and error feedback
trusts those most. The moment is therefore drawn towards a target: for an undersampled expert the pooled moment of the
same layer of other experts, which read the same kind of input; otherwise a multiple of the identity. The weight of the
target is the best one for Gaussian inputs (oracle approximating shrinkage: Chen, Wiesel, Eldar & Hero 2010, arXiv
0907.4698, equation 23).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vqcompress.moments.cross_validation import cross_validated
from vqcompress.moments.second_moment import SecondMoment

SUMMED_AT_ONCE = 4096  # lines of the square that are squared in float64 together
EXPERT = re.compile(r"\bexperts(\.[a-z]\w*)?\.\d+(?=\.|$)")


def is_undersampled(moment: SecondMoment) -> bool:
    """Whether fewer samples were used than there are columns: they then say nothing about some directions."""
    return moment.used < moment.columns


def expert_key(layer: str) -> str | None:
    """The same layer of different experts has one key: ``…experts.3.fc1`` -> ``…experts.*.fc1``, and
    ``…experts.down.3`` -> ``…experts.down.*``; else `None`."""
    return EXPERT.sub(r"experts\1.*", layer) if EXPERT.search(layer) else None


def shrunk_moment(moment: SecondMoment, other_experts: Sequence[SecondMoment] = ()) -> SecondMoment | None:
    """The second moment to quantize with; ``None`` where neither the layer nor ``other_experts`` saw a sample.

    ``other_experts`` are the moments of the same layer of other experts; ``moment`` itself may be among them. One that
    was recorded in folds is not drawn towards anything, but `cross_validated`.
    """
    if moment.folds:
        return cross_validated(moment)
    target = _pooled(other_experts)
    if target is None and moment.samples is not None:
        return _shrunk_samples(moment)
    if not moment.seen:
        return None if target is None else SecondMoment(target)
    square = moment.dense()
    weight = shrinkage(square, moment.used)
    if target is None:
        shrunk = square * (1 - weight)
        shrunk.diagonal().add_(weight * square.diagonal().mean())
    else:
        scale = square.trace() / target.trace().clamp(min=torch.finfo(target.dtype).tiny)
        shrunk = torch.lerp(square, target * scale, weight)
    return SecondMoment(shrunk, seen=moment.seen, used=moment.used)


def shrinkage(square: Tensor, samples: int) -> float:
    """Weight of the target in 0..1, from the spread of eigenvalues of ``square [p, p]``, the moment of ``samples``
    samples."""
    power = sum(float(part.double().square().sum()) for part in square.split(SUMMED_AT_ONCE))
    level = float(square.diagonal().double().sum()) ** 2
    return _oracle_weight(power, level, len(square), samples)


def _shrunk_samples(moment: SecondMoment) -> SecondMoment:
    """Shrinkage towards the identity without the square, by ``|Xᵀ X| = |X Xᵀ|``: the target becomes the ridge."""
    samples = moment.values
    gram = (samples @ samples.t()).double()
    trace = float(gram.trace())
    weight = _oracle_weight(float(gram.square().sum()), trace**2, moment.columns, moment.used)
    return replace(moment, samples=samples * (1 - weight) ** 0.5, ridge=weight * trace / moment.columns)


def _oracle_weight(power: float, level: float, columns: int, samples: int) -> float:
    """``power`` is the squared norm of the sample's moment, ``level`` the square of its trace."""
    spread = (samples + 1 - 2 / columns) * (power - level / columns)
    return min(1.0, ((1 - 2 / columns) * power + level) / spread) if spread > 0 else 1.0


def _pooled(moments: Sequence[SecondMoment]) -> Tensor | None:
    """The mean over all samples of ``moments``, ``[columns, columns]``; ``None`` where there is no sample."""
    recorded = [moment for moment in moments if moment.seen]
    if not recorded:
        return None
    total = sum(moment.seen for moment in recorded)
    pooled: Tensor | None = None
    for moment in recorded:
        square = moment.dense()
        pooled = torch.zeros_like(square) if pooled is None else pooled
        pooled.add_(square, alpha=moment.seen / total)
    return pooled
