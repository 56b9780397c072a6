"""Row scales of vector codes: rows are brought to unit RMS, so that one set of codebooks fits them all."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats.column_scales import COLUMN_SCALE_BITS, column_scale_factors, nearest_column_scale

SCALE_BITS = 16
WORTH_GAINS = 0.01  # bits a weight, for what decoding takes longer


def choose_scale(weight: Tensor, row_scales: bool | str) -> tuple[Tensor, bool]:
    """`unit_scale` of ``weight [rows, columns]``, and whether each row has its own; ``"auto"`` asks `row_scales_pay`."""
    per_row = row_scales_pay(weight) if row_scales == "auto" else bool(row_scales)
    return unit_scale(weight, per_row), per_row


def unit_scale(weight: Tensor, per_row: bool) -> Tensor:
    """RMS of each row of ``weight [rows, columns]``, or of all, rounded to float16 as stored: float32 ``[rows]``.

    Raises `RecipeError` when float16 cannot hold it.
    """
    power = weight.double().square().mean(1)
    scale = (power if per_row else power.mean().expand(len(weight))).sqrt().half().float()
    if not torch.isfinite(scale).all():
        raise RecipeError(
            f"weights as large as {float(weight.abs().max()):.3g} leave the range of float16 scales; keep this layer dense "
            "or rescale it"
        )
    return scale


def row_scales_pay(weight: Tensor) -> bool:
    """Whether the rows of ``weight [rows, columns]`` differ enough in power to be worth a scale each.

    Without scales, a fixed-rate code must span the mean power; with them, each row's own. At high rate that is worth half the
    logarithm of the ratio of the arithmetic to the geometric mean (Jayant & Noll, Digital Coding of Waveforms, the coding
    gain), in bits a weight, against ``16 / columns`` for storing them.
    """
    power = weight.double().square().mean(1)
    if (power == 0).any():
        return bool((power > 0).any())
    gain = (power.mean().log2() - power.log2().mean()) / 2
    return bool(gain > SCALE_BITS / weight.shape[1])


def mean_energy(weight: Tensor, settings: object = None) -> Tensor:
    """Mean square of ``weight [rows, columns]``, the same for every column: float32 ``[columns]``."""
    return weight.square().mean().expand(weight.shape[1])


def choose_gains(weight: Tensor, wanted: bool | Literal["auto"]) -> Tensor | None:
    """Gain codes of the columns of ``weight [rows, columns]``, or ``None`` for a weight that gets none: ``"auto"`` asks
    `column_gains_pay`."""
    gained = column_gains_pay(weight) if wanted == "auto" else wanted
    return column_gains(weight) if gained else None


def column_gains(weight: Tensor) -> Tensor:
    """Codes uint8 ``[columns]`` of each column's size by that of the largest column of ``weight [rows, columns]``."""
    sizes = _column_sizes(weight)
    return nearest_column_scale(sizes / sizes.max().clamp_min(1e-300))


def _column_sizes(weight: Tensor) -> Tensor:
    """Mean magnitudes, float64 ``[columns]``: one outlier makes a column's power, but not its size."""
    return weight.double().abs().mean(0)


def coded_energy(weight: Tensor, settings: Any) -> Tensor:
    """Mean square of ``weight [rows, columns]`` that the code spans in each column: a column's own where it has a gain, else that of all.

    ``settings`` are those of a method with gains; float32 ``[columns]``.
    """
    codes = choose_gains(weight, settings.gains)
    if codes is None:
        return mean_energy(weight)
    factors = column_scale_factors(codes)
    return factors.square() * (weight / factors).square().mean()


def column_gains_pay(weight: Tensor) -> bool:
    """Whether the columns of ``weight [rows, columns]`` differ enough in power to be worth a gain each.

    By the coding gain of `row_scales_pay`, over the columns that are not all zeros, of what gains leave against what there is.
    """
    sizes = _column_sizes(weight)
    live = sizes > 0
    if not live.any():
        return False
    power, factors = sizes[live].square(), column_scale_factors(column_gains(weight))[live].double().square()
    left = factors.log2().mean() + (power / factors).mean().log2()
    return bool((power.mean().log2() - left) / 2 > COLUMN_SCALE_BITS / len(weight) + WORTH_GAINS)


def divide_by_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """``weight [rows, columns] / scale [rows]``; rows of scale zero, which decode to zero whatever their codes, become zero."""
    return torch.where(scale > 0, 1 / scale, 0)[:, None] * weight
