"""One bit budget over a whole model: reverse water-filling over all columns of all layers at once.

The denoiser's squared output error is, to first order, a sum over columns: ``importance of the layer * sensitivity of the
column * energy of its weights * 2**(-2 * rate)``. Minimising it under a total number of bits gives every column the rate
``log2(cost / level) / 2`` for one common water level (Cover & Thomas, section 10.3.3); a layer's bits are the mean of its
columns' rates. Codes then round rates to what they can represent, within the layer.

Codes end at some rate. A layer whose error still costs more there than its bits do at the common price is left dense,
if the Lagrangian says so: no error, 16 bits a weight (Shoham & Gersho 1988, Efficient bit allocation for an arbitrary
set of quantizers). These are small layers next to the output; in a small model they decide the whole model's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np
from torch import Tensor

MIN_RATE, MAX_RATE = 1.0, 6.75  # bits; outside, the exponential law of distortion no longer describes the codes
DENSE = 16.0  # bits of a weight that is left as it is


@dataclass(frozen=True)
class LayerCost:
    """What a layer's error costs: ``sensitivity [columns]`` from error feedback, ``energy [columns]`` the mean squared weight,
    ``importance`` the squared output error of the denoiser per squared output error of the layer, ``rows`` its outputs;
    ``dense_bits`` is what a weight takes on disk when the layer is left as it is."""

    rows: int
    sensitivity: Tensor
    energy: Tensor
    importance: float
    dense_bits: float = DENSE

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * len(self.sensitivity)


def allocate_bits(layers: Mapping[str, LayerCost], bits: float) -> dict[str, float]:
    """Bits a weight for each layer, over all weights at most ``bits`` (and within 1e-3 of it where rates allow).

    A layer that is granted its ``dense_bits`` is to be left dense; all others get `MIN_RATE` to `MAX_RATE`.
    """
    costs = {name: np.log2(_column_cost(layer)) / 2 for name, layer in layers.items()}
    price = _Prices(layers, costs)
    dense = price.dense_at(price.lowest_level(bits, dense=None))
    return price.granted(price.lowest_level(bits, dense), dense)


class _Prices:
    """Layers' bits as a function of the water level: half the binary logarithm of the cost that every column is left with."""

    def __init__(self, layers: Mapping[str, LayerCost], costs: Mapping[str, np.ndarray]) -> None:
        self.layers, self.costs = layers, costs
        self.total = sum(layer.weights for layer in layers.values())

    def lowest_level(self, bits: float, dense: frozenset[str] | None) -> float:
        """The lowest level whose bits fit; with ``dense=None`` each level has the dense layers that it pays for."""
        low = min(cost.min() for cost in self.costs.values()) - MAX_RATE - DENSE
        high = max(cost.max() for cost in self.costs.values())
        for _ in range(80):
            level = (low + high) / 2
            granted = self.granted(level, self.dense_at(level) if dense is None else dense)
            spent = sum(granted[name] * layer.weights for name, layer in self.layers.items()) / self.total
            low, high = (level, high) if spent > bits else (low, level)
        return high

    def granted(self, level: float, dense: frozenset[str]) -> dict[str, float]:
        """Bits a weight of every layer."""
        return {
            name: layer.dense_bits if name in dense else float(self._rates(name, level).mean())
            for name, layer in self.layers.items()
        }

    def dense_at(self, level: float) -> frozenset[str]:
        """Layers whose error at `MAX_RATE` costs more than the bits it takes to be rid of it."""
        slope = 2 * log(2) * 4.0**level  # what one more bit a weight saves wherever rates are free
        found = []
        for name, layer in self.layers.items():
            rates = self._rates(name, level)
            if np.exp2(2 * (self.costs[name] - rates)).mean() > slope * (layer.dense_bits - rates.mean()):
                found.append(name)
        return frozenset(found)

    def _rates(self, name: str, level: float) -> np.ndarray:
        return np.clip(self.costs[name] - level, MIN_RATE, MAX_RATE)


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
    cost, dense = float(_column_cost(layer).mean()), int(layer.dense_bits)
    steps = [(cost * 4.0**-bit * 0.75, name, range(bit, bit + 1)) for bit in range(least, most)]
    return [*steps, (cost * 4.0**-most / (dense - most), name, range(most, dense))]


def _column_cost(layer: LayerCost) -> np.ndarray:
    cost = (layer.sensitivity.double().cpu() * layer.energy.double().cpu()).numpy() * layer.importance
    return np.maximum(cost, np.finfo(np.float64).tiny)
