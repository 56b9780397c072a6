"""What the weights look like to a trellis code, found by trial: heavy tails, and whether rows need scales of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.kernels.cpu_viterbi import CpuViterbi

TAILS = (0.0, 0.1, 0.2, 0.3)
TAIL_STEP = 0.05  # the second look, on either side of the best
TRIAL_COLUMNS, TRIAL_ROWS = 16, 2048
TRIAL_STATE_BITS = 12  # at most: larger states prefer the same tables, and take longer to say so


@dataclass(frozen=True)
class SourceModel:
    """``tail``: Tukey's h of the value table; ``row_scales``: a scale per row, or one for all."""

    tail: float
    row_scales: bool


def choose_source(
    weight: Tensor,
    tail: float | Literal["auto"],
    row_scales: bool | Literal["auto"],
    state_bits: int,
    rate: int,
    generator: torch.Generator,
) -> SourceModel:
    """Settle what is ``"auto"`` by coding a few columns of ``weight [rows, columns]`` both ways.

    Row scales count as what they cost: 16 bits a row would otherwise buy every weight of the row ``16 / columns`` bits,
    and a bit is worth a factor of four in error.
    """
    trial = _Trial(weight, state_bits, rate, generator)
    scalings = (False, True) if row_scales == "auto" else (row_scales,)
    tails = TAILS if tail == "auto" else (float(tail),)
    best = trial.best([SourceModel(h, scaled) for scaled in scalings for h in tails])
    if tail == "auto":
        nearby = [best.tail - TAIL_STEP, best.tail, best.tail + TAIL_STEP]
        best = trial.best([SourceModel(round(h, 3), best.row_scales) for h in nearby if h >= 0])
    return best


class _Trial:
    """A sample of columns, coded under one model after another."""

    def __init__(self, weight: Tensor, state_bits: int, rate: int, generator: torch.Generator) -> None:
        count = min(TRIAL_COLUMNS, max(4, weight.shape[1] // 16))
        columns = torch.randperm(weight.shape[1], generator=generator)[:count]
        self.weight, self.state_bits = weight, min(state_bits, TRIAL_STATE_BITS)
        self.targets = weight[:TRIAL_ROWS, columns].t().contiguous()
        lowest = -(-self.state_bits // self.targets.shape[1])
        self.rate = min(max(rate, lowest), max_rate(self.state_bits))
        self._prices: dict[SourceModel, float] = {}

    def best(self, models: list[SourceModel]) -> SourceModel:
        """The cheapest of ``models``, the first of them in a tie."""
        return models[0] if len(models) == 1 else min(models, key=self._price)

    def _price(self, model: SourceModel) -> float:
        """Error times the factor that the bits for row scales would have saved elsewhere."""
        if model not in self._prices:
            bits = 16 / self.weight.shape[1] if model.row_scales else 0.0
            self._prices[model] = self._error(model) * 4.0**bits
        return self._prices[model]

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
