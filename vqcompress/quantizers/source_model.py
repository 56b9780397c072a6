"""What the weights look like to a trellis code, found by trial: heavy tails, whether rows need scales of their own, and
whether an output rotation is the better answer to both."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from math import log
from typing import Literal

import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats.rotation import rotate, rotation_block
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.search.viterbi import CpuViterbi

TAILS = (0.0, 0.1, 0.2, 0.3)
TAIL_STEP = 0.05  # the second look, on either side of the best
TRIAL_COLUMNS, TRIAL_ROWS = 16, 2048
LEAST_BLOCK = 16  # smaller blocks do not mix enough
WORTH_ROTATING = 0.97  # of the error: undoing it takes time at every use
TRIAL_RATES = 4  # at most
LEAST_ERROR = 1e-30  # a weight of zeros has none, and no logarithm
TRIAL_STATE_BITS = 12  # at most: larger states prefer the same tables, and take longer to say so


@dataclass(frozen=True)
class SourceModel:
    """``tail``: Tukey's h of the value table; ``row_scales``: a scale per row, or one for all; ``rotation``: block, or 0."""

    tail: float
    row_scales: bool
    rotation: int = 0


def choose_source(
    weight: Tensor,
    tail: float | Literal["auto"],
    row_scales: bool | Literal["auto"],
    rotation: bool | Literal["auto"],
    state_bits: int,
    rate: int,
    rates: Mapping[int, float],
    generator: torch.Generator,
) -> SourceModel:
    """Settle what is ``"auto"`` by coding a few columns of ``weight [rows, columns]`` both ways.

    Row scales count as what they cost: 16 bits a row would otherwise buy every weight of the row ``16 / columns`` bits,
    and a bit is worth a factor of four in error. ``rates`` has the share of columns that each rate will get: a rotation is
    tried at all common ones, since heavy tails cost most where the rate is high.
    """
    block = rotation_block(len(weight)) if len(weight) > 1 else 0
    trial = _Trial(weight, state_bits, rate, generator)
    if rotation is True:
        trial = trial.rotated(block)
    scalings = (False, True) if row_scales == "auto" else (row_scales,)
    tails = TAILS if tail == "auto" else (float(tail),)
    best = trial.best([SourceModel(h, scaled) for scaled in scalings for h in tails])
    if tail == "auto":
        nearby = [best.tail - TAIL_STEP, best.tail, best.tail + TAIL_STEP]
        best = trial.best([SourceModel(round(h, 3), best.row_scales) for h in nearby if h >= 0])
    if rotation is True:
        return replace(best, rotation=block)
    # A rotation makes tails Gaussian and rows alike, so that is the model to try it with.
    if rotation == "auto" and block >= LEAST_BLOCK and (best.tail > 0 or best.row_scales):
        plain = SourceModel(0.0, False)
        if trial.rotated(block).log_price(plain, rates) < log(WORTH_ROTATING) + trial.log_price(best, rates):
            return replace(plain, rotation=block)
    return best


class _Trial:
    """A sample of columns, coded under one model after another."""

    def __init__(self, weight: Tensor, state_bits: int, rate: int, generator: torch.Generator) -> None:
        count = min(TRIAL_COLUMNS, max(4, weight.shape[1] // 16))
        self.columns = torch.randperm(weight.shape[1], generator=generator)[:count]
        self.weight, self.state_bits = weight, min(state_bits, TRIAL_STATE_BITS)
        self.targets = weight[:TRIAL_ROWS, self.columns].t().contiguous()
        self.rate = self._usable(rate)
        self._prices: dict[SourceModel, float] = {}

    def best(self, models: list[SourceModel]) -> SourceModel:
        """The cheapest of ``models``, the first of them in a tie."""
        return models[0] if len(models) == 1 else min(models, key=self.price)

    def log_price(self, model: SourceModel, rates: Mapping[int, float]) -> float:
        """Mean of the price's logarithm over the commonest ``rates``."""
        common = sorted(rates, key=rates.__getitem__)[-TRIAL_RATES:]
        total = sum(rates[rate] for rate in common)
        return sum(rates[rate] / total * log(max(self._at(rate).price(model), LEAST_ERROR)) for rate in common)

    def _at(self, rate: int) -> _Trial:
        """The same columns at another rate."""
        weight_sharing_copy = copy(self)
        weight_sharing_copy._prices = {}
        weight_sharing_copy.rate = self._usable(rate)
        return weight_sharing_copy

    def rotated(self, block: int) -> _Trial:
        """The same columns of the rotated weight."""
        weight_sharing_copy = copy(self)
        weight_sharing_copy._prices = {}
        weight_sharing_copy.weight = rotate(self.weight.t(), block).t()
        weight_sharing_copy.targets = weight_sharing_copy.weight[:TRIAL_ROWS, self.columns].t().contiguous()
        return weight_sharing_copy

    def price(self, model: SourceModel) -> float:
        """Error times the factor that the bits for row scales would have saved elsewhere."""
        if model not in self._prices:
            bits = 16 / self.weight.shape[1] if model.row_scales else 0.0
            self._prices[model] = self._error(model) * 4.0**bits
        return self._prices[model]

    def _usable(self, rate: int) -> int:
        """The nearest rate at which a column holds a state."""
        return min(max(rate, -(-self.state_bits // self.targets.shape[1])), max_rate(self.state_bits))

    def _error(self, model: SourceModel) -> float:
        """Squared error of the sample, at the best common gain."""
        rows = self.targets.shape[1]
        scale = row_scale(self.weight, model.row_scales)[:rows]
        search = CpuViterbi(rows, self.state_bits, {self.rate: value_table(self.state_bits, self.rate, model.tail)})
        decoded = torch.stack([search(target, scale, self.rate)[1] for target in self.targets]) * scale
        power = decoded.square().sum()
        gain = (self.targets * decoded).sum() / power if power > 0 else torch.zeros(())
        return float((self.targets - gain * decoded).square().sum())


def row_scale(weight: Tensor, per_row: bool) -> Tensor:
    """RMS of each row of ``weight [rows, columns]``, or of all, as it is stored: rounded to float16, float32 ``[rows]``."""
    power = weight.square().mean(1)
    scale = (power if per_row else power.mean().expand(len(weight))).sqrt().half()
    if torch.isinf(scale).any():
        raise RecipeError(
            f"weights as large as {float(weight.abs().max()):.3g} overflow the float16 scales of a trellis code; keep this layer dense"
        )
    return scale.float()
