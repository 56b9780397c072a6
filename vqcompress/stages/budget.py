"""Allocate bits per layer: the same for all, or from a model-wide budget by what each layer's error costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from vqcompress.methods import METHODS
from vqcompress.quantizers import quantizer_of, settings_for
from vqcompress.quantizers.bit_allocation import MIN_RATE, LayerCost, allocate_bits
from vqcompress.quantizers.coded_noise import column_errors
from vqcompress.recipe import Recipe
from vqcompress.stages.allocation_check import NARROW, Allocation, best_allocation
from vqcompress.stages.importance import importance_of_layers
from vqcompress.stages.layer_costs import costed_layers
from vqcompress.stages.run import Run
from vqcompress.stages.scalar_budget import scalar_bits


def allocate(run: Run, component: str, layers: list[str], groups: dict[str, str]) -> dict[str, float]:
    """Bits for each layer: the same for all, or from a model-wide budget by what its error costs.

    An allocation of the denoiser's bits that turns out worse than the same bits in every layer (`allocation_check`)
    gives way to a narrower one, or to none.
    """
    recipe = run.recipe
    if not recipe.shares_budget:
        return dict.fromkeys(layers, recipe.bits)
    importance = importance_of_layers(run, component, layers, groups)

    def make() -> dict[str, float]:
        if METHODS[recipe.method].whole_bits:
            return scalar_bits(run, component, layers, groups, importance)
        quantizer, settings = quantizer_of(recipe.method), settings_for(recipe.method, recipe.settings)
        found = costed_layers(run, component, layers, groups, lambda weight: quantizer.energy(weight, settings))
        costs = {layer.name: replace(layer.cost, importance=importance[layer.name]) for layer in found}
        weights = sum(cost.weights for cost in costs.values())
        mean = max(MIN_RATE, recipe.bits - _codebook_bits(recipe) / weights)
        candidates = [
            _allocation("allocated", allocate_bits(costs, mean), costs),
            _allocation("allocated within a tenth", allocate_bits(costs, mean, NARROW), costs),
            _allocation("the same bits in every layer", dict.fromkeys(costs, mean), costs),
        ]
        return best_allocation(run, component, groups, candidates).bits

    return run.main_process_first(lambda: run.store.load_or_make_json(f"{component}.bits", "all", make))


def _allocation(name: str, bits: dict[str, float], costs: Mapping[str, LayerCost]) -> Allocation:
    left = {
        layer: 0.0 if bits[layer] >= cost.dense_bits else cost.outputs * float(column_errors(cost, bits[layer]).sum())
        for layer, cost in costs.items()
    }
    return Allocation(name, bits, left)


def _codebook_bits(recipe: Recipe) -> int:
    """Bits of the float16 codebooks that the component stores once for all layers; they come out of the budget."""
    shape = quantizer_of(recipe.method).codebook_shape
    if shape is None or not recipe.shared_codebooks:
        return 0
    return 16 * prod(shape(settings_for(recipe.method, recipe.settings), recipe.bits))
