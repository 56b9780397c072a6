"""Model selection: which source model the weights follow, as seen by a trellis code that encodes a few of their
columns.

A model says how heavy the tails are, whether outputs need scales of their own, and whether the outputs are rotated
instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor

from vqcompress.formats.rotation import rotate, rotation_block
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.quantizers.scales import SCALE_BITS, Auto, rms_scale
from vqcompress.search.viterbi import CpuViterbi

TAILS = (0.0, 0.1, 0.2, 0.3)
TAIL_STEP = 0.05  # the second look, on either side of the best
SAMPLE_COLUMNS, SAMPLE_OUTPUTS = 16, 2048
LEAST_BLOCK = 16  # smaller blocks do not mix enough
ROTATION_MUST_LEAVE = 0.97  # of the error, at most: undoing a rotation takes time at every use
COMPARED_RATES = 4  # at most
LEAST_ERROR = 1e-30  # a weight of zeros has none, and no logarithm
LARGEST_STATE_BITS = 12  # larger states prefer the same tables, and take longer to say so


@dataclass(frozen=True)
class SourceModel:
    """``tail``: Tukey's h of the value table; ``row_scales``: a scale per output, or one for all; ``rotation``: block,
    or 0."""

    tail: float
    row_scales: bool
    rotation: int = 0


@dataclass(frozen=True)
class SourceOptions:
    """What a user fixes of a `SourceModel`; ``"auto"`` leaves it to `select_source_model`."""

    tail: float | Auto = "auto"
    row_scales: bool | Auto = "auto"
    rotation: bool | Auto = "auto"


@dataclass(frozen=True)
class SampleCode:
    """The code to compare models with: state size, ``rate`` in bits a weight, and the share of columns that get each
    rate."""

    state_bits: int
    rate: int
    shares: Mapping[int, float]


def select_source_model(
    weight: Tensor, options: SourceOptions, code: SampleCode, generator: torch.Generator
) -> SourceModel:
    """The model that encodes a few columns of ``weight [out, columns]`` best, within ``options``.

    Row scales count as what they cost: 16 bits an output would otherwise buy every weight of the output ``16 /
    columns`` bits, and a bit reduces the error by a factor of four. A rotation is compared at all common rates of
    ``code``, since heavy tails cost most where the rate is high.
    """
    block = rotation_block(len(weight)) if len(weight) > 1 else 0
    sample = _Sample(weight, code, generator)
    if options.rotation is True:
        sample = sample.rotated(block)
    scalings = (False, True) if options.row_scales == "auto" else (options.row_scales,)
    tails = TAILS if options.tail == "auto" else (float(options.tail),)
    best = sample.best([SourceModel(h, scaled) for scaled in scalings for h in tails])
    if options.tail == "auto":
        nearby = [best.tail - TAIL_STEP, best.tail, best.tail + TAIL_STEP]
        best = sample.best([SourceModel(round(h, 3), best.row_scales) for h in nearby if h >= 0])
    if options.rotation is True:
        return replace(best, rotation=block)
    # A rotation makes tails Gaussian and outputs alike, so that is the model to compare it with.
    if options.rotation == "auto" and block >= LEAST_BLOCK and (best.tail > 0 or best.row_scales):
        plain = SourceModel(0.0, False)
        if sample.rotated(block).log_cost(plain) < log(ROTATION_MUST_LEAVE) + sample.log_cost(best):
            return replace(plain, rotation=block)
    return best


class _Sample:
    """A sample of columns, encoded under one model after another."""

    def __init__(self, weight: Tensor, code: SampleCode, generator: torch.Generator) -> None:
        count = min(SAMPLE_COLUMNS, max(4, weight.shape[1] // 16))
        self.columns = torch.randperm(weight.shape[1], generator=generator)[:count]
        self.shares, self.state_bits = code.shares, min(code.state_bits, LARGEST_STATE_BITS)
        self._set_weight(weight)
        self.rate = self._usable(code.rate)

    def best(self, models: list[SourceModel]) -> SourceModel:
        """The cheapest of ``models``, the first of them in a tie."""
        return models[0] if len(models) == 1 else min(models, key=self.cost)

    def cost(self, model: SourceModel) -> float:
        """Error times the factor that the bits for row scales would have saved elsewhere."""
        if model not in self._costs:
            bits = SCALE_BITS / self.weight.shape[1] if model.row_scales else 0.0
            self._costs[model] = self._error(model) * 4.0**bits
        return self._costs[model]

    def log_cost(self, model: SourceModel) -> float:
        """Mean of the cost's logarithm over the commonest rates."""
        common = sorted(self.shares, key=self.shares.__getitem__)[-COMPARED_RATES:]
        total = sum(self.shares[rate] for rate in common)
        return sum(self.shares[rate] / total * log(max(self._at(rate).cost(model), LEAST_ERROR)) for rate in common)

    def rotated(self, block: int) -> _Sample:
        """The same columns of the rotated weight."""
        other = copy(self)
        other._set_weight(rotate(self.weight.t(), block).t())
        return other

    def _at(self, rate: int) -> _Sample:
        """The same columns at another rate."""
        other = copy(self)
        other._costs = {}
        other.rate = self._usable(rate)
        return other

    def _set_weight(self, weight: Tensor) -> None:
        self.weight = weight
        self.targets = weight[:SAMPLE_OUTPUTS, self.columns].t().contiguous()
        self.scales: dict[bool, Tensor] = {}
        self._costs: dict[SourceModel, float] = {}

    def _usable(self, rate: int) -> int:
        """The nearest rate at which a column holds a state."""
        return min(max(rate, -(-self.state_bits // self.targets.shape[1])), max_rate(self.state_bits))

    def _error(self, model: SourceModel) -> float:
        """Squared error of the sample, at the best common factor."""
        outputs = self.targets.shape[1]
        if model.row_scales not in self.scales:
            self.scales[model.row_scales] = rms_scale(self.weight, model.row_scales)
        scale = self.scales[model.row_scales][:outputs]
        search = CpuViterbi(outputs, self.state_bits, {self.rate: value_table(self.state_bits, self.rate, model.tail)})
        decoded = torch.stack([search(target, scale, self.rate)[1] for target in self.targets]) * scale
        power = decoded.square().sum()
        factor = (self.targets * decoded).sum() / power if power > 0 else torch.zeros(())
        return float((self.targets - factor * decoded).square().sum())
