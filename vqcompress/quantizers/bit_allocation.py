"""One bit budget over a whole model: reverse water-filling over all columns of all layers at once.

The denoiser's squared output error is, to first order, a sum over columns: ``importance of the layer * sensitivity of
the column * energy of its weights * 2**(-2 * rate)``. Minimising it under a total number of bits gives every column the
rate ``log2(cost / level) / 2`` for one common water level (Cover & Thomas, section 10.3.3); a layer's bits are the mean
of its columns' rates. Codes then round rates to what they can represent, within the layer.

Error feedback makes low rates more expensive than that. A column is coded with the error that columns before it have
propagated into it, and where those are coarse this is more than its own weights: its rate at the same level is
``log2(cost / level + propagated) / 2``. On inputs as correlated as text embeddings the plain law promises a tenth of
the error that 1.5 bits really leave, and a budget that believes it gives exactly these layers too few bits. Each bit
then saves more than ``2 ln 2`` levels, so a layer's level lies below the one that all layers share.

No column gets less than `LEAST_SHARE` of the mean: importance is an average over a layer's outputs and directions and
the first order of a nonlinear network, which fails first where errors are large.

Codes end at some rate. A layer whose error still costs more there than the bits of a dense layer is left dense, if the
Lagrangian says so: no error, 16 bits a weight (Shoham & Gersho 1988, Efficient bit allocation for an arbitrary set of
quantizers). These are small layers next to the output; in a small model they decide the whole model's error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
from torch import Tensor

MIN_RATE, MAX_RATE = 1.0, 6.75  # bits; what codes can do
# Of the mean. Measured at 2 and 3 bits on the embedded transformers: without it, one of them was worse than with the
# same bits in every layer.
LEAST_SHARE = 0.75
STEP = 0.125  # of the tabulated water levels, in bits
SPREAD = 24.0  # bits between a layer's most sensitive column and those that no longer count
DENSE = 16.0  # bits of a weight that is left as it is


@dataclass(frozen=True)
class LayerCost:
    """What a layer's error costs.

    ``outputs``: how many the layer has. ``sensitivity [columns]``: from error feedback. ``energy [columns]``: the mean
    squared weight. ``importance``: the squared output error of the denoiser per squared output error of the layer.
    ``propagated_error [columns]``: as in `error_feedback.Feedback.propagated_error`, None for none. ``dense_bits``:
    what a weight takes on disk when the layer is left as it is.
    """

    outputs: int
    sensitivity: Tensor
    energy: Tensor
    importance: float
    propagated_error: Tensor | None = None
    dense_bits: float = DENSE

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * len(self.sensitivity)

    @cached_property
    def column_costs(self) -> np.ndarray:
        """What each column's error costs at rate 0, float64 ``[columns]``, above 0."""
        cost = (self.sensitivity.double().cpu() * self.energy.double().cpu()).numpy() * self.importance
        return np.maximum(cost, np.finfo(np.float64).tiny)


def allocate_bits(layers: Mapping[str, LayerCost], bits: float, least_share: float = LEAST_SHARE) -> dict[str, float]:
    """Bits a weight for each layer, over all weights at most ``bits`` (and within 1e-3 of it where rates allow).

    A layer that is granted its ``dense_bits`` is to be left dense; all others get ``least_share`` of the mean, and
    `MIN_RATE`, to `MAX_RATE`.
    """
    lagrangian = _Lagrangian(layers, least=max(MIN_RATE, least_share * bits))
    dense = lagrangian.dense_at(lagrangian.least_multiplier(bits, dense=None))
    return lagrangian.bits_at(lagrangian.least_multiplier(bits, dense), dense)


def joint_importance(
    output: Mapping[str, float], images: Sequence[Mapping[str, float]], left: Mapping[str, float]
) -> dict[str, float]:
    """The importance of each layer for both the denoiser's output and the images, half and half.

    ``output[layer]``: squared relative error of the denoiser's output per squared output error of the layer.
    ``images``: for each of a few prompts, by how much every layer moves the final sample, squared, when it has the
    error ``left[layer]``. A prompt counts by the layers' shares in what all layers do to it: what adds up over layers
    is then the mean of the logarithm of the images' errors, in decibels the mean PSNR, and prompts whose trajectories
    are unstable do not outweigh the rest. Without ``images`` the result is ``output``.
    """
    total = sum(output[name] * left[name] for name in output)
    moved = [(each, sum(each.values())) for each in images]
    shares = [{name: each[name] / whole for name in output} for each, whole in moved if whole > 0]
    if not shares or not total:
        return dict(output)
    share = {name: sum(each[name] for each in shares) / len(shares) for name in output}
    return {
        name: (output[name] + total * share[name] / left[name]) / 2 if left[name] else output[name] for name in output
    }


class _Lagrangian:
    """Layers' bits as a function of the Lagrange multiplier of the budget.

    The multiplier is half the binary logarithm of what one more bit a weight must save to be granted.
    """

    def __init__(self, layers: Mapping[str, LayerCost], least: float) -> None:
        self.layers = layers
        self.curves = {name: _Curve(layer, least) for name, layer in layers.items()}
        self.total = sum(layer.weights for layer in layers.values())

    def least_multiplier(self, bits: float, dense: frozenset[str] | None) -> float:
        """The lowest multiplier at which the bits fit; with ``dense=None`` each has the dense layers that `dense_at`
        finds."""
        low = min(curve.multipliers[0] for curve in self.curves.values()) - DENSE
        high = max(curve.multipliers[-1] for curve in self.curves.values())
        for _ in range(80):
            middle = (low + high) / 2
            granted = self.bits_at(middle, self.dense_at(middle) if dense is None else dense)
            spent = sum(granted[name] * layer.weights for name, layer in self.layers.items()) / self.total
            low, high = (middle, high) if spent > bits else (low, middle)
        return high

    def bits_at(self, multiplier: float, dense: frozenset[str]) -> dict[str, float]:
        """Bits a weight of every layer."""
        return {
            name: layer.dense_bits if name in dense else self.curves[name].at(multiplier)[0]
            for name, layer in self.layers.items()
        }

    def dense_at(self, multiplier: float) -> frozenset[str]:
        """Layers whose remaining error costs more than the bits that would remove it."""
        found = []
        for name, layer in self.layers.items():
            bits, error = self.curves[name].at(multiplier)
            if error > 4.0**multiplier * (layer.dense_bits - bits):
                found.append(name)
        return frozenset(found)


class _Curve:
    """A layer's bits, ``least`` or more, and its error at every multiplier, tabulated over water levels.

    ``multipliers [levels]`` rise.
    """

    def __init__(self, layer: LayerCost, least: float) -> None:
        costs, error = layer.column_costs, layer.propagated_error
        propagated = np.zeros_like(costs) if error is None else error.double().cpu().numpy()
        halves = np.log2(costs) / 2
        lowest = max(halves.min(), halves.max() - SPREAD) - MAX_RATE
        levels = np.arange(lowest - STEP, halves.max() + STEP, STEP)
        points = [_point(costs, propagated, level, least) for level in levels]
        multipliers, self.bits, self.errors = (np.array(column) for column in zip(*points, strict=True))
        # Where columns reach the ends of their rates, a step may fall short.
        self.multipliers = np.maximum.accumulate(multipliers)

    def at(self, multiplier: float) -> tuple[float, float]:
        """Bits a weight, and what the error then costs a weight."""
        bits = np.interp(multiplier, self.multipliers, self.bits)
        return float(bits), float(np.exp2(np.interp(multiplier, self.multipliers, np.log2(self.errors))))


def _point(costs: np.ndarray, propagated: np.ndarray, level: float, least: float) -> tuple[float, float, float]:
    """Multiplier, bits and error where every column is left with ``4**level``, as far as rates from ``least`` to
    `MAX_RATE` go."""
    left = 4.0**level
    wanted = np.log2(costs / left + propagated) / 2
    rates = np.clip(wanted, least, MAX_RATE)
    free = (wanted > least) & (wanted < MAX_RATE)
    # One level down, a free column's error falls by `left`; its rate rises by this share of the rise without propagated
    # error.
    share = (costs / (costs + left * propagated))[free].mean() if free.any() else 1.0
    error = ((costs + left * propagated) * 4.0**-rates).mean()
    return level + np.log2(2 * log(2) / share) / 2, rates.mean(), error
