"""One bit budget over a whole model: reverse water-filling over all columns of all layers at once.

The denoiser's squared output error is, to first order, a sum over columns: ``importance of the layer * sensitivity of the
column * energy of its weights * 2**(-2 * rate)``. Minimising it under a total number of bits gives every column the rate
``log2(cost / level) / 2`` for one common water level (Cover & Thomas, section 10.3.3); a layer's bits are the mean of its
columns' rates. Codes then round rates to what they can represent, within the layer.

Error feedback makes low rates dearer than that. A column is coded with what the errors before it have pushed into it, and where
those are coarse this is more than its own weights: its rate at the same level is ``log2(cost / level + inherited) / 2``. On inputs as
correlated as text embeddings the plain law promises a tenth of the error that 1.5 bits really leave, and a budget that believes
it starves exactly these layers. Each bit then saves more than ``2 ln 2`` levels, so a layer's level lies below the common price.

No column is reckoned at less than `LEAST_SHARE` of the mean: importance is an average over a layer's rows and directions and the first
order of a nonlinear network, which fails first where errors are large.

Codes end at some rate. A layer whose error still costs more there than its bits do at the common price is left dense,
if the Lagrangian says so: no error, 16 bits a weight (Shoham & Gersho 1988, Efficient bit allocation for an arbitrary
set of quantizers). These are small layers next to the output; in a small model they decide the whole model's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
from torch import Tensor

MIN_RATE, MAX_RATE = 1.0, 6.75  # bits; what codes can do
# Of the mean. Measured at 2 and 3 bits on the embedded transformers: without, one was worse than with the same bits for all.
LEAST_SHARE = 0.75
STEP = 0.125  # of the tabulated water levels, in bits
SPREAD = 24.0  # bits between a layer's dearest column and those that no longer count
DENSE = 16.0  # bits of a weight that is left as it is


@dataclass(frozen=True)
class LayerCost:
    """What a layer's error costs: ``sensitivity [columns]`` from error feedback, ``energy [columns]`` the mean squared weight,
    ``importance`` the squared output error of the denoiser per squared output error of the layer, ``rows`` its outputs;
    ``inherited [columns]`` as in `error_feedback.Feedback.inherited`, None for none; ``dense_bits`` is what a weight takes on
    disk when the layer is left as it is."""

    rows: int
    sensitivity: Tensor
    energy: Tensor
    importance: float
    inherited: Tensor | None = None
    dense_bits: float = DENSE

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * len(self.sensitivity)

    @cached_property
    def column_costs(self) -> np.ndarray:
        """What each column's error costs at rate 0, float64 ``[columns]``, above 0."""
        cost = (self.sensitivity.double().cpu() * self.energy.double().cpu()).numpy() * self.importance
        return np.maximum(cost, np.finfo(np.float64).tiny)


def allocate_bits(layers: Mapping[str, LayerCost], bits: float) -> dict[str, float]:
    """Bits a weight for each layer, over all weights at most ``bits`` (and within 1e-3 of it where rates allow).

    A layer that is granted its ``dense_bits`` is to be left dense; all others get `LEAST_SHARE` of the mean, and `MIN_RATE`, to `MAX_RATE`.
    """
    price = _Prices(layers, least=max(MIN_RATE, LEAST_SHARE * bits))
    dense = price.dense_at(price.lowest(bits, dense=None))
    return price.granted(price.lowest(bits, dense), dense)


class _Prices:
    """Layers' bits as a function of the price: half the binary logarithm of what one more bit a weight must save to be bought."""

    def __init__(self, layers: Mapping[str, LayerCost], least: float) -> None:
        self.layers = layers
        self.curves = {name: _Curve(layer, least) for name, layer in layers.items()}
        self.total = sum(layer.weights for layer in layers.values())

    def lowest(self, bits: float, dense: frozenset[str] | None) -> float:
        """The lowest price at which the bits fit; with ``dense=None`` each price has the dense layers that it pays for."""
        low = min(curve.prices[0] for curve in self.curves.values()) - DENSE
        high = max(curve.prices[-1] for curve in self.curves.values())
        for _ in range(80):
            price = (low + high) / 2
            granted = self.granted(price, self.dense_at(price) if dense is None else dense)
            spent = sum(granted[name] * layer.weights for name, layer in self.layers.items()) / self.total
            low, high = (price, high) if spent > bits else (low, price)
        return high

    def granted(self, price: float, dense: frozenset[str]) -> dict[str, float]:
        """Bits a weight of every layer."""
        return {
            name: layer.dense_bits if name in dense else self.curves[name].at(price)[0]
            for name, layer in self.layers.items()
        }

    def dense_at(self, price: float) -> frozenset[str]:
        """Layers whose remaining error costs more than the bits it takes to be rid of it."""
        found = []
        for name, layer in self.layers.items():
            bits, error = self.curves[name].at(price)
            if error > 4.0**price * (layer.dense_bits - bits):
                found.append(name)
        return frozenset(found)


class _Curve:
    """A layer's bits, ``least`` or more, and its error at every price, tabulated over water levels: ``prices [levels]``, rising."""

    def __init__(self, layer: LayerCost, least: float) -> None:
        costs = layer.column_costs
        inherited = np.zeros_like(costs) if layer.inherited is None else layer.inherited.double().cpu().numpy()
        halves = np.log2(costs) / 2
        lowest = max(halves.min(), halves.max() - SPREAD) - MAX_RATE
        levels = np.arange(lowest - STEP, halves.max() + STEP, STEP)
        points = [_point(costs, inherited, level, least) for level in levels]
        prices, self.bits, self.errors = (np.array(column) for column in zip(*points, strict=True))
        self.prices = np.maximum.accumulate(
            prices
        )  # where columns reach the ends of their rates, a step may fall short

    def at(self, price: float) -> tuple[float, float]:
        """Bits a weight, and what the error then costs a weight."""
        bits = np.interp(price, self.prices, self.bits)
        return float(bits), float(np.exp2(np.interp(price, self.prices, np.log2(self.errors))))


def _point(costs: np.ndarray, inherited: np.ndarray, level: float, least: float) -> tuple[float, float, float]:
    """Price, bits and error where every column is left with ``4**level``, as far as rates from ``least`` to `MAX_RATE` go."""
    left = 4.0**level
    wanted = np.log2(costs / left + inherited) / 2
    rates = np.clip(wanted, least, MAX_RATE)
    free = (wanted > least) & (wanted < MAX_RATE)
    # One level down, a free column's error falls by `left`, and its rate rises by this share of what it would without inheritance.
    share = (costs / (costs + left * inherited))[free].mean() if free.any() else 1.0
    return level + np.log2(2 * log(2) / share) / 2, rates.mean(), ((costs + left * inherited) * 4.0**-rates).mean()


def allocate_whole_bits(layers: Mapping[str, LayerCost], bits: float, least: int, most: int) -> dict[str, int]:
    """The same for codes of a whole number of bits, from ``least`` to ``most``, or dense: on average at most ``bits``.

    A layer's cost falls by a factor of four a bit, convexly, so the next bit always goes to the layer where it saves most
    a weight (Fox 1966), for as long as one fits. The last step, from ``most`` to dense, saves what error is left.
    """
    granted = dict.fromkeys(layers, least)
    spare = sum(layer.weights for layer in layers.values()) * (bits - least)
    steps = sorted(
        (step for layer in layers.items() for step in _steps(*layer, least, most)), key=lambda step: -step[0]
    )
    for _, name, step in steps:
        # A step that did not fit bars the layer's later ones: they start where it would have ended.
        if granted[name] == step.start and (step.stop - step.start) * layers[name].weights <= spare:
            granted[name] = step.stop
            spare -= (step.stop - step.start) * layers[name].weights
    return granted


def _steps(name: str, layer: LayerCost, least: int, most: int) -> list[tuple[float, str, range]]:
    """What each next number of bits saves a bit and weight, to a common factor."""
    cost, dense = float(layer.column_costs.mean()), int(layer.dense_bits)
    steps = [(cost * 4.0**-bit * 0.75, name, range(bit, bit + 1)) for bit in range(least, most)]
    return [*steps, (cost * 4.0**-most / (dense - most), name, range(most, dense))]
