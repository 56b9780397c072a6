"""Widths and group sizes of scalar codes from a model-wide budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqcompress.formats import ScalarSpec
from vqcompress.formats.scalar import FLOAT_SCALES
from vqcompress.matrix_view import to_matrix
from vqcompress.methods import METHODS
from vqcompress.quantizers import settings_for
from vqcompress.quantizers.bit_allocation import LEAST_SHARE, LayerCost
from vqcompress.quantizers.scalar_allocation import (
    GROUP_SIZES,
    LayerChoices,
    ScalarChoice,
    allocate_choices,
    scalar_choices,
)
from vqcompress.quantizers.scalar_grid import stored_bits
from vqcompress.quantizers.scales import mean_energy
from vqcompress.stages.allocation_check import NARROW, Allocation, best_allocation
from vqcompress.stages.layer_costs import costed_layers
from vqcompress.stages.run import Run


def scalar_bits(
    run: Run, component: str, layers: list[str], groups: dict[str, str], importance: Mapping[str, float]
) -> dict[str, float]:
    """A width for each layer, or its dense bits; the group sizes go into the run's folder, for `settings_of`.

    The recipe's ``bits``, which may be a fraction, is a width at the method's own group size; what that stores in every
    layer is the budget.
    """
    recipe, settings = run.recipe, settings_for(run.recipe.method, run.recipe.settings)
    sizes = (settings.group_size,) if "group_size" in recipe.settings else GROUP_SIZES
    same = _spec(settings, int(recipe.bits))
    offers: dict[str, LayerChoices[ScalarChoice]] = {}
    costs: dict[str, LayerCost] = {}
    budget = 0.0
    feeds_back = METHODS[recipe.method].calibrated
    for layer in costed_layers(run, component, layers, groups, mean_energy, feeds_back):
        weight, cost = to_matrix(run.weight(component, layer.name)).float(), layer.cost
        choices = scalar_choices(weight, cost.sensitivity, sizes, same.scale_bits, cost.dense_bits)
        offers[layer.name] = LayerChoices(cost.weights, importance[layer.name], choices)
        costs[layer.name] = cost
        budget += cost.weights * nominal_bits(recipe.bits, settings, *weight.shape)
    mean = budget / sum(offer.weights for offer in offers.values())
    found = {
        "allocated": allocate_choices(offers, mean, LEAST_SHARE),
        "allocated within a tenth": allocate_choices(offers, mean, NARROW),
    }
    if recipe.bits == int(recipe.bits):
        found["the same bits in every layer"] = {
            name: next(choice for choice in offer.choices if choice.spec == same) for name, offer in offers.items()
        }
    candidates = [_allocation(name, choices, costs) for name, choices in found.items()]
    best = best_allocation(run, component, groups, candidates)
    sizes_of = {
        name: settings.group_size if choice.spec is None else choice.spec.group_size
        for name, choice in found[best.name].items()
    }
    run.store.put_json(_stage(component), "all", sizes_of)
    return best.bits


def settings_of(run: Run, component: str, layer: str) -> Any:
    """The method's settings for a layer: the recipe's, with the group size that the budget chose."""
    values = run.recipe.settings
    if METHODS[run.recipe.method].whole_bits and run.recipe.shares_budget:
        values = {**values, "group_size": run.store.load_json(_stage(component), "all")[layer]}
    return settings_for(run.recipe.method, values)


def nominal_bits(bits: float, settings: Any, outputs: int, columns: int) -> float:
    """Stored bits a weight of a code of ``bits`` bits, a fraction in proportion between the whole widths around it."""
    low = int(bits)
    less, more = (stored_bits(_spec(settings, width), outputs, columns) for width in (low, low + 1))
    return less + (bits - low) * (more - less)


def _spec(settings: Any, bits: int) -> ScalarSpec:
    return ScalarSpec(bits, settings.group_size, getattr(settings, "scale_bits", FLOAT_SCALES))


def _stage(component: str) -> str:
    return f"{component}.group-sizes"


def _allocation(name: str, choices: Mapping[str, ScalarChoice], costs: Mapping[str, LayerCost]) -> Allocation:
    bits = {
        layer: float(costs[layer].dense_bits if choice.spec is None else choice.spec.bits)
        for layer, choice in choices.items()
    }
    return Allocation(name, bits, {layer: choice.left for layer, choice in choices.items()})
