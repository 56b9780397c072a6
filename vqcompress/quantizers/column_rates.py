"""Reverse water-filling with integer rates: which column gets how many codes, within a byte budget.

At rate ``r`` a column's cost is about ``sensitivity * distortion(r)``. Distortions of a good code fall convexly, so
giving the next code always to the column where it saves most per byte is optimal (Fox 1966, Discrete optimization via
marginal analysis). On correlated inputs, where sensitivities spread over orders of magnitude, this reduces the error by
a factor of 1.5 to 2 at the same bytes, compared with one rate for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes
from vqcompress.errors import UnfitWeightError
from vqcompress.formats.column_scales import column_scales_shape
from vqcompress.formats.rates import rates_shape

MAX_RATE_BITS = 3
FLAT = 1.5  # sensitivities within this ratio: all columns get one rate


def allocate_rates(
    sensitivity: Tensor, distortion: Sequence[float], min_rate: int, column_bytes: Callable[[int], int], budget: int
) -> Tensor:
    """Rates ``[columns]`` (int64) from ``min_rate`` to ``min_rate + len(distortion) - 1`` within ``budget`` bytes of
    codes.

    ``distortion[i]`` is the mean squared error of the code at rate ``min_rate + i`` on a unit source.
    """
    columns, steps = len(sensitivity), len(distortion) - 1
    sizes = np.array([column_bytes(min_rate + i) for i in range(steps + 1)])
    rates = np.full(columns, min_rate)
    spare = budget - columns * int(sizes[0])
    if steps == 0 or spare <= 0:
        return torch.from_numpy(rates)
    saving = np.maximum(-np.diff(np.asarray(distortion)), 0) / np.maximum(np.diff(sizes), 1)
    savings = sensitivity.cpu().numpy()[:, None] * saving[None]
    ranking = np.argsort(-savings, axis=None, kind="stable")
    cost = np.diff(sizes)[ranking % steps]
    taken = ranking[np.cumsum(cost) <= spare]
    np.add.at(rates, taken // steps, 1)
    return torch.from_numpy(rates)


@dataclass(frozen=True)
class RatePlan:
    """Rates ``[columns]`` (int64) and how they are stored: as ``rate - min_rate`` in ``rate_bits`` bits each (0: not at
    all)."""

    rates: Tensor
    min_rate: int
    rate_bits: int


def plan_rates(
    sensitivity: Tensor, distortion: Mapping[int, float], column_bytes: Callable[[int], int], budget: int
) -> RatePlan | None:
    """The cheapest allocation over all ways to store rates, within ``budget`` bytes for codes and stored rates.

    ``distortion`` maps each usable rate, a run of integers, to its mean squared error on a unit source. ``None`` when
    nothing fits.
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


class AdditiveBudget:
    """Bytes for the additive codes of a weight ``[out, columns]``, and the columns that compete for them.

    ``bits`` a weight pay for codes and rates, and for scales of outputs and columns where the weight has them.
    """

    def __init__(
        self, outputs: int, sensitivity: Tensor, bits: float, *, row_scales: bool, column_scales: bool = False
    ) -> None:
        self.outputs, self.sensitivity = outputs, sensitivity
        self.nbytes = int(bits * outputs * len(sensitivity) / 8) - (2 * outputs if row_scales else 0)
        self._single_scale = 0 if row_scales else 2
        self.nbytes -= column_scales_shape(len(sensitivity))[1] if column_scales else 0

    @property
    def flat(self) -> bool:
        """Whether all columns matter alike."""
        return bool(self.sensitivity.max() <= FLAT * self.sensitivity.min())

    def plan(self, errors: dict[int, float], dimension: int, code_bits: int, codebook_bytes: int = 0) -> RatePlan:
        """Column rates for a code with these `codebooks.prefix_errors`, each codebook in use costing
        ``codebook_bytes``.

        Raises `UnfitWeightError` when not even one code for some columns fits.
        """
        vectors, best, least = -(-self.outputs // dimension), None, math.inf
        # Beside shared codebooks a single scale is not charged: a weight that fits exactly would lose a rate in one
        # column.
        budget = self.nbytes - (self._single_scale if codebook_bytes else 0)
        for top in range(max(1, min(errors)), max(errors) + 1):
            usable = {rate: error for rate, error in errors.items() if rate <= top}
            plan = plan_rates(
                self.sensitivity,
                usable,
                lambda rate: packed_bytes(vectors * rate, code_bits),
                budget - top * codebook_bytes,
            )
            cost = math.inf if plan is None else self._cost(plan, errors)
            if cost < least:
                best, least = plan, cost
        if best is None or int(best.rates.max()) == 0:
            raise UnfitWeightError(
                f"a weight of {self.outputs} x {len(self.sensitivity)} is too small for additive codes of {code_bits} "
                f"bits and their codebooks within {self.nbytes} bytes; share codebooks between layers, raise bits, or "
                "keep it dense"
            )
        return best

    def _cost(self, plan: RatePlan, errors: dict[int, float]) -> float:
        by_rate = torch.tensor([errors.get(rate, 0.0) for rate in range(max(errors) + 1)], dtype=torch.float64)
        return float((self.sensitivity.double() * by_rate[plan.rates]).sum())
