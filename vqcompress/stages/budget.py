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
from vqcompress.stages.recording import record_component
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

    def make() -> dict[str, float]:
        if METHODS[recipe.method].whole_bits:
            importance = importance_of_layers(run, component, layers, groups)
            return scalar_bits(run, component, layers, groups, importance)
        candidates = candidates_for(recipe, _costs(run, component, layers, groups), 1)
        return best_allocation(run, component, groups, candidates).bits

    return run.main_process_first(lambda: run.store.load_or_make_json(f"{component}.bits", "all", make))


def allocate_together(run: Run) -> None:
    """Allocate one budget to the layers of several denoisers, where there are several; `allocate` then finds it.

    All of them are recorded first. What an error costs counts relative to the output of its denoiser. An allocation
    that turns out worse than the same bits in every layer, in any of them, is given up for all. Scalar codes have a
    budget for each denoiser.
    """
    shared = [component for component in run.layers if component in run.architecture.denoisers]
    if len(shared) < 2 or not run.recipe.shares_budget or METHODS[run.recipe.method].whole_bits:
        return
    groups = {component: record_component(run, component, run.layers[component]) for component in shared}
    run.main_process_first(lambda: _make_together(run, groups))


def _make_together(run: Run, groups: dict[str, dict[str, str]]) -> None:
    if all(run.store.done(f"{component}.bits") for component in groups):
        return
    costs = {component: _costs(run, component, run.layers[component], found) for component, found in groups.items()}
    joint = {f"{part}/{layer}": cost for part, found in costs.items() for layer, cost in found.items()}
    candidates = candidates_for(run.recipe, joint, len(costs))
    chosen = max(_choice(run, part, found, candidates) for part, found in groups.items())
    for component in groups:
        run.store.put_json(f"{component}.bits", "all", part_of(candidates[chosen], component).bits)


def _choice(run: Run, component: str, groups: dict[str, str], candidates: list[Allocation]) -> int:
    """Which of ``candidates`` is best for one component."""
    own = [part_of(candidate, component) for candidate in candidates]
    return own.index(best_allocation(run, component, groups, own))


def part_of(allocation: Allocation, component: str) -> Allocation:
    """What an allocation of layers called ``component/layer`` gives to one component."""
    start = component + "/"
    bits = {name.removeprefix(start): bits for name, bits in allocation.bits.items() if name.startswith(start)}
    return Allocation(allocation.name, bits, {layer: allocation.left[start + layer] for layer in bits})


def _costs(run: Run, component: str, layers: list[str], groups: dict[str, str]) -> dict[str, LayerCost]:
    importance = importance_of_layers(run, component, layers, groups)
    quantizer, settings = quantizer_of(run.recipe.method), settings_for(run.recipe.method, run.recipe.settings)
    found = costed_layers(run, component, layers, groups, lambda weight: quantizer.energy(weight, settings))
    return {layer.name: replace(layer.cost, importance=importance[layer.name]) for layer in found}


def candidates_for(recipe: Recipe, costs: Mapping[str, LayerCost], components: int) -> list[Allocation]:
    """Allocations to try, the last of them the same bits in every layer."""
    weights = sum(cost.weights for cost in costs.values())
    mean = max(MIN_RATE, recipe.bits - components * _codebook_bits(recipe) / weights)
    return [
        _allocation("allocated", allocate_bits(costs, mean), costs),
        _allocation("allocated within a tenth", allocate_bits(costs, mean, NARROW), costs),
        _allocation("the same bits in every layer", dict.fromkeys(costs, mean), costs),
    ]


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
