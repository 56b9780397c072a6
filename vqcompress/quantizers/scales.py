"""Scales of vector codes: one for each output, which brings it to unit RMS, and one for each column where columns
differ.

One set of codebooks, or one value table, then fits all of them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vqcompress.errors import UnfitWeightError
from vqcompress.formats.column_scales import COLUMN_SCALE_BITS, column_scale_factors, nearest_column_scale
from vqcompress.quantizers.outliers import without_outliers

SCALE_BITS = 16
COLUMN_SCALES_MUST_SAVE = 0.01  # bits a weight, for the time that they take in decoding
SQUARED_AT_ONCE = 1024  # outputs whose float64 squares are in memory together

Auto = Literal["auto"]


def choose_scale(weight: Tensor, row_scales: bool | Auto) -> tuple[Tensor, bool]:
    """`rms_scale` of ``weight [out, columns]``, and whether each output has its own; ``"auto"`` asks
    `row_scales_pay`."""
    per_output = row_scales_pay(weight) if row_scales == "auto" else bool(row_scales)
    return rms_scale(weight, per_output), per_output


def rms_scale(weight: Tensor, per_output: bool) -> Tensor:
    """RMS of each output of ``weight [out, columns]``, or of all together, as stored: float32 ``[out]``, rounded to
    float16.

    Squares are summed in float64. Raises `UnfitWeightError` where float16 cannot hold the RMS.
    """
    power = _output_power(weight)
    scale = (power if per_output else power.mean().expand(len(weight))).sqrt().half().float()
    if not torch.isfinite(scale).all():
        raise UnfitWeightError(
            f"weights as large as {float(weight.abs().max()):.3g} leave the range of float16 scales; keep this layer "
            "dense or rescale it"
        )
    return scale


def row_scales_pay(weight: Tensor) -> bool:
    """Whether the outputs of ``weight [out, columns]`` differ enough in power to justify a scale each.

    Without scales, a fixed-rate code must span the mean power; with them, each output's own. At high rate that saves
    half the logarithm of the ratio of the arithmetic to the geometric mean (Jayant & Noll, Digital Coding of Waveforms,
    the coding gain), in bits a weight, against ``16 / columns`` for storing them.
    """
    power = _output_power(weight)
    if (power == 0).any():
        return bool((power > 0).any())
    gain = (power.mean().log2() - power.log2().mean()) / 2
    return bool(gain > SCALE_BITS / weight.shape[1])


def _output_power(weight: Tensor) -> Tensor:
    """Mean square of each output of ``weight [out, columns]``, float64 ``[out]``."""
    return torch.cat([part.double().square().mean(1) for part in weight.split(SQUARED_AT_ONCE)])


def divide_by_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """``weight [out, columns] / scale [out]``; outputs of scale zero, which decode to zero whatever their codes, become
    zero."""
    return torch.where(scale > 0, 1 / scale, 0)[:, None] * weight


def choose_column_scales(weight: Tensor, wanted: bool | Auto) -> Tensor | None:
    """`column_scale_codes` of ``weight [out, columns]``, or ``None`` where it gets none; ``"auto"`` asks
    `column_scales_pay`."""
    scaled = column_scales_pay(weight) if wanted == "auto" else wanted
    return column_scale_codes(weight) if scaled else None


def column_scale_codes(weight: Tensor) -> Tensor:
    """Codes uint8 ``[columns]`` of each column's size relative to the largest column of ``weight [out, columns]``."""
    sizes = _column_sizes(weight)
    return nearest_column_scale(sizes / sizes.max().clamp_min(1e-300))


def column_scales_pay(weight: Tensor) -> bool:
    """Whether the columns of ``weight [out, columns]`` differ enough in power to justify a scale each.

    By the coding gain of `row_scales_pay` over the columns that are not all zeros: the spread of power that column
    scales leave, against the spread there is.
    """
    sizes = _column_sizes(weight)
    live = sizes > 0
    if not live.any():
        return False
    power, factors = sizes[live].square(), column_scale_factors(column_scale_codes(weight))[live].double().square()
    left = factors.log2().mean() + (power / factors).mean().log2()
    return bool((power.mean().log2() - left) / 2 > COLUMN_SCALE_BITS / len(weight) + COLUMN_SCALES_MUST_SAVE)


def _column_sizes(weight: Tensor) -> Tensor:
    """Mean magnitudes, float64 ``[columns]``: one outlier dominates a column's power, but not its mean magnitude."""
    return weight.double().abs().mean(0)


def mean_energy(weight: Tensor, settings: object = None) -> Tensor:
    """Mean square of ``weight [out, columns]``, the same for every column: float32 ``[columns]``."""
    return weight.square().mean().expand(weight.shape[1])


def coded_energy(weight: Tensor, settings: Any) -> Tensor:
    """Mean square of ``weight [out, columns]`` that the code spans in each column: float32 ``[columns]``.

    That is a column's own where it has a scale, otherwise that of all; outliers are left out. ``settings`` are those of
    a method with column scales.
    """
    if settings.outliers:
        weight = without_outliers(weight)
    codes = choose_column_scales(weight, settings.column_scales)
    if codes is None:
        return mean_energy(weight)
    factors = column_scale_factors(codes)
    return factors.square() * (weight / factors).square().mean()
