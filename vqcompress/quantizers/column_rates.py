"""Reverse water-filling with whole steps of rate: which column gets how many codes, within a byte budget.

At rate ``r`` a column's cost is about ``sensitivity * distortion(r)``. Distortions of a good code fall convexly, so
giving the next code always to the column where it saves most per byte is optimal (Fox 1966, Discrete optimization via
marginal analysis). On correlated inputs, where sensitivities spread over orders of magnitude, this reduces the error by
a factor of 1.5 to 2 at the same bytes, compared with one rate for all.
"""

from __future__ import annotations

import copy
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


class RateSteps:
    """Every column's steps from one rate to the next, in the order in which they are worth taking.

    ``distortion[i]`` is the mean squared error of the code at rate ``first + i`` on a unit source, ``column_bytes(r)``
    what a column of rate r takes.
    """

    def __init__(
        self, sensitivity: Tensor, distortion: Sequence[float], first: int, column_bytes: Callable[[int], int]
    ) -> None:
        self.first, self.last, self.columns = first, first + len(distortion) - 1, len(sensitivity)
        self._sizes = np.array([column_bytes(rate) for rate in range(first, self.last + 1)])
        self._sensitivity = sensitivity.double().cpu().numpy()
        self._distortion, steps = np.asarray(distortion, dtype=np.float64), len(distortion) - 1
        saving = _falling(np.maximum(-np.diff(self._distortion), 0), np.maximum(np.diff(self._sizes), 1))
        ranking = np.argsort(-(sensitivity.cpu().numpy()[:, None] * saving[None]), axis=None, kind="stable")
        self._column, self._step = ranking // max(steps, 1), ranking % max(steps, 1)
        self._cost = np.diff(self._sizes)[self._step]

    def allocate(self, least: int, most: int, budget: int) -> Tensor:
        """Rates ``[columns]`` (int64) from ``least`` to ``most`` within ``budget`` bytes of codes, or ``least`` for
        all."""
        usable = (self._step >= least - self.first) & (self._step < most - self.first)
        spent = np.cumsum(self._cost[usable])
        spare = budget - self.columns * int(self._sizes[least - self.first])
        taken = self._column[usable][: np.searchsorted(spent, spare, "right")]
        return torch.from_numpy(np.bincount(taken, minlength=self.columns) + least)

    def fits(self, rate: int, budget: int) -> bool:
        """Whether ``budget`` bytes hold all columns at ``rate``."""
        return self.columns * int(self._sizes[rate - self.first]) <= budget

    def error(self, rates: Tensor) -> float:
        """What is left at these rates, ``sum(sensitivity * distortion)``."""
        return float((self._sensitivity * self._distortion[rates.numpy() - self.first]).sum())


def _falling(saved: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """What each step saves per byte, a step that saves more than the one before it pooled with that one.

    Bytes are rounded up, so a later step can be the cheaper one, but a column takes its steps in order: the pools are
    the lower convex hull of distortion over bytes.
    """
    pools: list[tuple[float, float, int]] = []
    for amount, price in zip(saved.tolist(), spent.tolist(), strict=True):
        pools.append((amount, price, 1))
        while len(pools) > 1 and pools[-1][0] * pools[-2][1] > pools[-2][0] * pools[-1][1]:
            later, earlier = pools.pop(), pools.pop()
            pools.append((earlier[0] + later[0], earlier[1] + later[1], earlier[2] + later[2]))
    return np.array([amount / price for amount, price, steps in pools for _ in range(steps)])


@dataclass(frozen=True)
class RatePlan:
    """Rates ``[columns]`` (int64) and how they are stored: as ``rate - min_rate`` in ``rate_bits`` bits each (0: not at
    all).

    ``error`` is what they leave, ``sum(sensitivity * distortion)``. ``unit`` is what a rate counts: 1/2 for half bits.
    """

    rates: Tensor
    min_rate: int
    rate_bits: int
    error: float
    unit: float = 1.0

    @property
    def bits(self) -> Tensor:
        """Rates in bits a weight, float64 ``[columns]``."""
        return self.rates.double() * self.unit


def plan_rates(
    sensitivity: Tensor,
    distortion: Mapping[int, float],
    column_bytes: Callable[[int], int],
    budget: int,
    most_rate_bits: int = MAX_RATE_BITS,
) -> RatePlan | None:
    """The cheapest allocation over all ways to store rates, within ``budget`` bytes for codes and stored rates.

    ``distortion`` maps each usable rate, a run of integers, to its mean squared error on a unit source. ``None`` when
    nothing fits.
    """
    known = sorted(distortion)
    steps, best = RateSteps(sensitivity, [distortion[rate] for rate in known], known[0], column_bytes), None
    for rate_bits in range(most_rate_bits + 1):
        spare = budget - (rates_shape(len(sensitivity), rate_bits)[1] if rate_bits else 0)
        for min_rate in known:
            if not steps.fits(min_rate, spare) or (rate_bits and min_rate == known[-1]):
                continue
            rates = steps.allocate(min_rate, min(min_rate + (1 << rate_bits) - 1, known[-1]), spare)
            error = steps.error(rates)
            if best is None or error < best.error:
                best = RatePlan(rates, min_rate, rate_bits, error)
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

    def with_sensitivity(self, sensitivity: Tensor) -> AdditiveBudget:
        """The same bytes for columns that matter otherwise."""
        other = copy.copy(self)
        other.sensitivity = sensitivity
        return other

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
