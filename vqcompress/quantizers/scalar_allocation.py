"""Widths and group sizes of scalar codes from one budget over all layers, everything stored counted.

A layer can have any width with any group size: the lower convex hull of stored bits and error is what is worth having,
down to a dense layer with no error, and the next step always goes to the layer where it saves most a bit (Shoham &
Gersho 1988, Efficient bit allocation for an arbitrary set of quantizers; Fox 1966).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.quantizers.scalar_grid import SCALAR_BITS, search_grid, stored_bits

GROUP_SIZES = (16, 32, 64, 128)
MEASURED_BITS = 3  # a layer's grids are tried at this width; other widths follow as they do on Gaussian weights
TRIED = 32  # outputs
SAMPLE = (256, 64)  # columns and outputs of Gaussian weights


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something that a layer can have: ``stored`` bits a weight, all that is stored, and ``left``, ``tr(E H Eᵀ)`` of
    what is lost of the layer."""

    stored: float
    left: float


@dataclass(frozen=True)
class ScalarChoice(Choice):
    """A scalar code; ``spec=None`` is a dense layer."""

    spec: ScalarSpec | None


C = TypeVar("C", bound=Choice)


@dataclass(frozen=True)
class LayerChoices(Generic[C]):
    """A layer with ``weights`` weights, the cost of its error (as `LayerCost.importance`), and what it can have."""

    weights: int
    importance: float
    choices: tuple[C, ...]


def scalar_choices(
    weight: Tensor, sensitivity: Tensor, group_sizes: Sequence[int], scale_bits: int, dense_bits: float
) -> tuple[ScalarChoice, ...]:
    """All widths and ``group_sizes`` for ``weight [out, columns]``, and dense.

    ``sensitivity [columns]`` is what squared error costs in each column.
    """
    outputs, columns = weight.shape
    tried = weight[:: max(1, outputs // TRIED)].t().float()
    costs, found = sensitivity.to(tried).float(), []
    for group_size in group_sizes:
        measured = outputs * _error(tried, ScalarSpec(MEASURED_BITS, group_size, scale_bits), costs)
        for bits in SCALAR_BITS:
            spec = ScalarSpec(bits, group_size, scale_bits)
            ratio = _gaussian_error(spec) / _gaussian_error(ScalarSpec(MEASURED_BITS, group_size, scale_bits))
            found.append(ScalarChoice(spec, stored=stored_bits(spec, outputs, columns), left=measured * ratio))
    return (*found, ScalarChoice(None, stored=dense_bits, left=0.0))


def _error(columns: Tensor, spec: ScalarSpec, sensitivity: Tensor) -> float:
    """What rounding ``columns [columns, out]`` leaves, a mean over outputs: feedback changes targets, but not how far
    they are from the grid."""
    rounded = search_grid(columns, spec, sensitivity).rounded(columns)
    return float(((rounded - columns).double().square().mean(1) * sensitivity.double()).sum())


@lru_cache(maxsize=256)
def _gaussian_error(spec: ScalarSpec) -> float:
    weight = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
    return _error(weight, spec, torch.ones(SAMPLE[0]))


def allocate_choices(layers: Mapping[str, LayerChoices[C]], bits: float, least_share: float) -> dict[str, C]:
    """A choice for each layer, over all weights at most ``bits`` stored bits a weight where the least that there is
    allows. No layer gets less than ``least_share`` of the mean, if it has a choice above that."""
    paths = {name: _hull(layer, least_share * bits) for name, layer in layers.items()}
    at = dict.fromkeys(layers, 0)
    spare = sum(layer.weights * (bits - paths[name][0].stored) for name, layer in layers.items())
    steps = [
        (_saving(layer, before, after), name, index + 1)
        for name, layer in layers.items()
        for index, (before, after) in enumerate(zip(paths[name], paths[name][1:], strict=False))
    ]
    for _, name, index in sorted(steps, key=lambda step: -step[0]):
        cost = layers[name].weights * (paths[name][index].stored - paths[name][at[name]].stored)
        # A step that did not fit bars the layer's later ones: they start where it would have ended.
        if at[name] == index - 1 and cost <= spare:
            at[name], spare = index, spare - cost
    return {name: paths[name][index] for name, index in at.items()}


def _saving(layer: LayerChoices, before: Choice, after: Choice) -> float:
    """What the step saves a bit."""
    return layer.importance * (before.left - after.left) / (layer.weights * (after.stored - before.stored))


def _hull(layer: LayerChoices[C], least: float) -> list[C]:
    """The lower convex hull of the choices from ``least`` bits on, from few bits to many."""
    ordered = sorted(layer.choices, key=lambda choice: (choice.stored, choice.left))
    usable = [choice for choice in ordered if choice.stored >= least] or ordered[-1:]
    hull: list[C] = []
    for choice in usable:
        if hull and choice.left >= hull[-1].left:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (before.left - after.left) / max(after.stored - before.stored, 1e-12)
