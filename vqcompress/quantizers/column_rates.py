"""Reverse water-filling with integer rates: which column gets how many codes, within a byte budget.

At rate ``r`` a column's cost is about ``sensitivity * distortion(r)``. Distortions of a good code fall convexly, so giving the
next code always to the column where it saves most per byte is optimal (Fox 1966, Discrete optimization via marginal
analysis). On correlated inputs, where sensitivities spread over orders of magnitude, this is worth a factor of
1.5 to 2 in error at the same bytes over one rate for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats.rates import rates_shape

MAX_RATE_BITS = 3


def allocate_rates(
    sensitivity: Tensor, distortion: Sequence[float], min_rate: int, column_bytes: Callable[[int], int], budget: int
) -> Tensor:
    """Rates ``[columns]`` (int64) from ``min_rate`` to ``min_rate + len(distortion) - 1`` within ``budget`` bytes of codes.

    ``distortion[i]`` is the mean squared error of the code at rate ``min_rate + i`` on a unit source.
    """
    columns, steps = len(sensitivity), len(distortion) - 1
    sizes = np.array([column_bytes(min_rate + i) for i in range(steps + 1)])
    rates = np.full(columns, min_rate)
    spare = budget - columns * int(sizes[0])
    if steps == 0 or spare <= 0:
        return torch.from_numpy(rates)
    saving = np.maximum(-np.diff(np.asarray(distortion)), 0) / np.maximum(np.diff(sizes), 1)
    gains = sensitivity.cpu().numpy()[:, None] * saving[None]
    ranking = np.argsort(-gains, axis=None, kind="stable")
    cost = np.diff(sizes)[ranking % steps]
    taken = ranking[np.cumsum(cost) <= spare]
    np.add.at(rates, taken // steps, 1)
    return torch.from_numpy(rates)


@dataclass(frozen=True)
class RatePlan:
    """Rates ``[columns]`` (int64) and how they are stored: as ``rate - min_rate`` in ``rate_bits`` bits each (0: not at all)."""

    rates: Tensor
    min_rate: int
    rate_bits: int


def plan_rates(
    sensitivity: Tensor, distortion: Mapping[int, float], column_bytes: Callable[[int], int], budget: int
) -> RatePlan | None:
    """The cheapest allocation over all ways to store rates, within ``budget`` bytes for codes and stored rates.

    ``distortion`` maps each usable rate, a run of integers, to its mean squared error on a unit source. ``None`` when nothing fits.
    """
    best, least = None, float("inf")
    for rate_bits in range(MAX_RATE_BITS + 1):
        spare = budget - (rates_shape(len(sensitivity), rate_bits)[1] if rate_bits else 0)
        for min_rate in distortion:
            if len(sensitivity) * column_bytes(min_rate) > spare or (rate_bits and min_rate == max(distortion)):
                continue
            usable = [distortion[r] for r in range(min_rate, min_rate + (1 << rate_bits)) if r in distortion]
            rates = allocate_rates(sensitivity, usable, min_rate, column_bytes, spare)
            cost = float((sensitivity.double() * torch.tensor(usable).double()[rates - min_rate]).sum())
            if cost < least:
                best, least = RatePlan(rates, min_rate, rate_bits), cost
    return best
