"""What the weights look like to a trellis code, found by trial: heavy tails, and whether rows need scales of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.kernels.cpu_viterbi import CpuViterbi

TAILS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
TRIAL_COLUMNS, TRIAL_ROWS = 8, 1024


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
    tails = TAILS if tail == "auto" else (float(tail),)
    scalings = (False, True) if row_scales == "auto" else (row_scales,)
    models = [SourceModel(h, scaled) for scaled in scalings for h in tails]
    if len(models) == 1:
        return models[0]
    columns = torch.randperm(weight.shape[1], generator=generator)[:TRIAL_COLUMNS]
    lowest = -(-state_bits // min(len(weight), TRIAL_ROWS))
    rate = min(max(rate, lowest), max_rate(state_bits))
    targets = weight[:TRIAL_ROWS, columns].t().contiguous()
    price = {False: 1.0, True: 4.0 ** (16 / weight.shape[1])}
    errors = [
        price[m.row_scales] * _trial_error(targets, row_scale(weight, m.row_scales), m, state_bits, rate)
        for m in models
    ]
    return models[errors.index(min(errors))]


def row_scale(weight: Tensor, per_row: bool) -> Tensor:
    """RMS of each row of ``weight [rows, columns]``, or of all, as it is stored: rounded to float16, float32 ``[rows]``."""
    power = weight.square().mean(1)
    scale = (power if per_row else power.mean().expand(len(weight))).sqrt().half()
    if torch.isinf(scale).any():
        raise RecipeError(
            f"weights as large as {float(weight.abs().max()):.3g} overflow the float16 scales of a trellis code; keep this layer dense"
        )
    return scale.float()


def _trial_error(targets: Tensor, scale: Tensor, model: SourceModel, state_bits: int, rate: int) -> float:
    """Squared error of coding ``targets [n, rows]``, at the best common gain."""
    rows = targets.shape[1]
    search = CpuViterbi(rows, state_bits, {rate: value_table(state_bits, rate, model.tail)})
    decoded = torch.stack([search(target, scale[:rows], rate)[1] for target in targets]) * scale[:rows]
    power = decoded.square().sum()
    gain = (targets * decoded).sum() / power if power > 0 else torch.zeros(())
    return float((targets - gain * decoded).square().sum())
