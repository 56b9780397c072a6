"""Which weights to store beside the codes, by what that saves against the bits that it takes.

A bit more for the codes lowers the cost of a weight's error, ``θ`` (the same for all columns under reverse
water-filling), by ``2 ln 2 θ``: the slope of ``4^-R``. An outlier of ``b`` bits must therefore save more than
``2 ln 2 b θ``. What it saves is the cost of its overload: the square of what reaches beyond the code's range, times the
sensitivity of its column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.formats.outliers import BITS_EACH, POSITIONS, VALUES
from vqcompress.moments.rate_distortion import water_level
from vqcompress.moments.second_moment import SecondMoment

REACHES = (3.5, 6.0, 12.0, 24.0, 48.0)  # standard deviations: of a code for Gaussian weights, and of heavier tails
MOST_BITS = 0.01  # a weight: more than that are a heavy tail
FEW = 8  # are none, however small the weight is
USUAL_BITS = 3.0
MEAN_TO_DEVIATION = math.sqrt(math.pi / 2)  # of Gaussian weights: mean magnitude -> standard deviation
ROUNDS = 3  # without its outliers a weight has another deviation
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Outliers:
    """``values [n]`` float16 at rising ``positions [n]``, ``column * outputs + output``, of a weight
    ``[outputs, columns]``."""

    positions: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def removed_from(self, weight: Tensor) -> Tensor:
        """``weight [out, columns]`` less the outliers."""
        if not len(self):
            return weight
        transposed = weight.t().contiguous()
        transposed.view(-1)[self.positions] -= self.values.to(weight)
        return transposed.t()

    def bits_per_weight(self, weight: Tensor) -> float:
        """What they take of the budget of ``weight``."""
        return BITS_EACH * len(self) / weight.numel()

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored."""
        return {VALUES: self.values, POSITIONS: self.positions.int()} if len(self) else {}


NO_OUTLIERS = Outliers(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float16))


def outliers_worth_storing(weight: Tensor, sensitivity: Tensor, bits: float) -> Outliers:
    """The outliers of ``weight [out, columns]`` beyond the shortest of `REACHES` that leaves few of them.

    Where many weights reach beyond a Gaussian code's range, the weights have heavy tails, which a value table or a
    rotation meets at less cost; only what lies beyond these too is an outlier.
    """
    for reach in REACHES:
        found = find_outliers(weight, sensitivity, bits, reach)
        if len(found) <= FEW or found.bits_per_weight(weight) <= MOST_BITS:
            return found
    return NO_OUTLIERS


def without_outliers(weight: Tensor) -> Tensor:
    """``weight [out, columns]`` less the outliers that it would have with white inputs at `USUAL_BITS`."""
    return outliers_worth_storing(weight, weight.new_ones(weight.shape[1]), USUAL_BITS).removed_from(weight)


def input_outliers(weight: Tensor, second_moment: SecondMoment | None, bits: float) -> Outliers:
    """`outliers_worth_storing` by the power of each column's input, for codes that do not factor the moment."""
    power = torch.ones(weight.shape[1]) if second_moment is None else second_moment.diagonal()
    return outliers_worth_storing(weight, power.to(weight.device), bits)


def find_outliers(weight: Tensor, sensitivity: Tensor, bits: float, reach: float) -> Outliers:
    """The outliers of ``weight [out, columns]``, float32, that save more than they store in a code of ``bits`` bits.

    ``sensitivity [columns]`` is the cost of squared error in each column. ``reach`` is the code's range in standard
    deviations: those of the whole weight, of the column or of the output, whichever is largest, since a column or an
    output that is large throughout is a matter of scales.
    """
    magnitude, sensitivity = weight.abs(), sensitivity.to(weight.device).float().clamp_min(0)
    kept = torch.ones_like(weight)
    for _ in range(ROUNDS):
        rest = magnitude * kept
        total = rest.mean().clamp_min(1e-30)
        columns, outputs = _mean(rest, kept, 0), _mean(rest, kept, 1)
        scale = torch.maximum(torch.maximum(columns, outputs), total) * MEAN_TO_DEVIATION
        energy = (weight * kept).square().mean()
        level = water_level(sensitivity.double() * float(energy), bits)
        saved = (magnitude - reach * scale).clamp_min(0).square() * sensitivity
        chosen = saved > 2 * math.log(2) * BITS_EACH * level
        kept = (~chosen).float()
    positions = chosen.t().reshape(-1).nonzero()[:, 0]
    values = weight.t().reshape(-1)[positions].clamp(-LARGEST, LARGEST)
    return Outliers(positions, values.half())


def _mean(values: Tensor, kept: Tensor, axis: int) -> Tensor:
    """Mean over ``axis`` of what is ``kept``, which keeps its axes."""
    return values.sum(axis, keepdim=True) / kept.sum(axis, keepdim=True).clamp_min(1)
