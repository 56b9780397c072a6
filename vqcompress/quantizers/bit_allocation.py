"""One bit budget over a whole model: reverse water-filling over all columns of all layers at once.

The denoiser's squared output error is, to first order, a sum over columns: ``importance of the layer * sensitivity of the
column * energy of its weights * 2**(-2 * rate)``. Minimising it under a total number of bits gives every column the rate
``log2(cost / level) / 2`` for one common water level (Cover & Thomas, section 10.3.3); a layer's bits are the mean of its
columns' rates. Codes then round rates to what they can represent, within the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

MIN_RATE, MAX_RATE = 1.0, 6.75  # bits; outside, the exponential law of distortion no longer describes the codes


@dataclass(frozen=True)
class LayerCost:
    """What a layer's error costs: ``sensitivity [columns]`` from error feedback, ``energy`` the mean squared weight,
    ``importance`` the squared output error of the denoiser per squared output error of the layer, ``rows`` its outputs."""

    rows: int
    sensitivity: Tensor
    energy: float
    importance: float

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * len(self.sensitivity)


def allocate_bits(layers: Mapping[str, LayerCost], bits: float) -> dict[str, float]:
    """Bits a weight for each layer, on average ``bits`` over all weights (within 1e-4)."""
    costs = {name: np.log2(_column_cost(layer)) / 2 for name, layer in layers.items()}
    low, high = min(c.min() for c in costs.values()) - MAX_RATE, max(c.max() for c in costs.values()) - MIN_RATE
    total = sum(layer.weights for layer in layers.values())
    for _ in range(60):
        level = (low + high) / 2
        granted = {name: float(np.clip(cost - level, MIN_RATE, MAX_RATE).mean()) for name, cost in costs.items()}
        spent = sum(granted[name] * layers[name].weights for name in layers) / total
        low, high = (level, high) if spent > bits else (low, level)
    return granted


def allocate_whole_bits(layers: Mapping[str, LayerCost], bits: float, least: int, most: int) -> dict[str, int]:
    """The same for codes of a whole number of bits, from ``least`` to ``most``: on average at most ``bits``.

    A layer's cost falls by a factor of four a bit, convexly, so the next bit always goes to the layer where it saves most
    a weight (Fox 1966), for as long as one fits.
    """
    granted = dict.fromkeys(layers, least)
    spare = sum(layer.weights for layer in layers.values()) * (bits - least)
    saving = {name: float(_column_cost(layer).mean()) for name, layer in layers.items()}
    steps = sorted(
        ((saving[name] * 4.0**-bit, name) for name in layers for bit in range(least, most)), key=lambda step: -step[0]
    )
    for _, name in steps:
        if layers[name].weights <= spare:
            granted[name] += 1
            spare -= layers[name].weights
    return granted


def _column_cost(layer: LayerCost) -> np.ndarray:
    cost = layer.sensitivity.double().cpu().numpy() * layer.energy * layer.importance
    return np.maximum(cost, np.finfo(np.float64).tiny)
