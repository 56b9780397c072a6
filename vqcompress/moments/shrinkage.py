"""Second moments of layers that saw few inputs: an expert that was seldom chosen, a layer fed by timesteps alone.

With ``n`` rows for ``p`` columns the sample's small eigenvalues are far too small, and error feedback trusts them most. The
moment is therefore drawn towards a target: for a starved layer that of its siblings, which read the same kind of
input, or else a multiple of the identity, with the weight that is best for Gaussian inputs (the oracle approximating
shrinkage of Chen, Wiesel, Eldar & Hero 2010, arXiv 0907.4698, equation 23).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from vqcompress.moments.low_rank import RowMoment
from vqcompress.moments.second_moment import Moments, RecordedSamples

Recorded = Moments | RecordedSamples

SUMMED_ROWS = 4096  # in float64 at once
EXPERT = re.compile(r"\bexperts\.\d+\.")


def is_undersampled(moments: Recorded) -> bool:
    """Whether fewer rows were multiplied than there are columns: the sample then says nothing about some directions."""
    return moments.used_rows < moments.columns


def expert_key(layer: str) -> str | None:
    """Layers of one key do the same work in different experts: ``…experts.3.fc1`` -> ``…experts.*.fc1``; else ``None``."""
    return EXPERT.sub("experts.*.", layer) if EXPERT.search(layer) else None


def shrunk_moment(moments: Recorded, siblings: Sequence[Recorded] = ()) -> Tensor | RowMoment | None:
    """The second moment ``[columns, columns]`` to quantize with; ``None`` where neither layer nor siblings saw a row."""
    target = _pooled(siblings)
    if target is None and isinstance(moments, RecordedSamples):
        return _shrunk_rows(moments)
    if not moments.rows:
        return target
    weight = shrinkage(moments.second_moment, moments.used_rows)
    if target is None:
        shrunk = moments.second_moment * (1 - weight)
        shrunk.diagonal().add_(weight * moments.second_moment.diagonal().mean())
        return shrunk
    scale = moments.second_moment.trace() / target.trace().clamp(min=torch.finfo(target.dtype).tiny)
    return torch.lerp(moments.second_moment, target * scale, weight)


def shrinkage(second_moment: Tensor, rows: int) -> float:
    """Weight of the target in 0..1, from the sample's own spread of eigenvalues and the number of rows."""
    power = sum(float(part.double().square().sum()) for part in second_moment.split(SUMMED_ROWS))
    level = float(second_moment.diagonal().double().sum()) ** 2
    return _oracle_weight(power, level, len(second_moment), rows)


def _shrunk_rows(moments: RecordedSamples) -> RowMoment:
    """The same shrinkage towards the identity, from the rows: ``|Xᵀ X| = |X Xᵀ|``."""
    gram = (moments.inputs @ moments.inputs.t()).double()
    trace = float(gram.trace())
    weight = _oracle_weight(float(gram.square().sum()), trace**2, moments.columns, moments.used_rows)
    return RowMoment(moments.inputs * (1 - weight) ** 0.5, weight * trace / moments.columns)


def _oracle_weight(power: float, level: float, columns: int, rows: int) -> float:
    """``power`` is the squared norm of the sample's moment, ``level`` the square of its trace."""
    spread = (rows + 1 - 2 / columns) * (power - level / columns)
    return min(1.0, ((1 - 2 / columns) * power + level) / spread) if spread > 0 else 1.0


def _pooled(siblings: Sequence[Recorded]) -> Tensor | None:
    seen = [moments for moments in siblings if moments.rows]
    if not seen:
        return None
    total = sum(moments.rows for moments in seen)
    pooled = torch.zeros_like(seen[0].second_moment)
    for moments in seen:
        pooled.add_(moments.second_moment, alpha=moments.rows / total)
    return pooled
