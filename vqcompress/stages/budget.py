"""Allocate bits per layer: the same for all, or from a model-wide budget by what each layer's error costs."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from vqcompress.calibration.importance import layer_importance
from vqcompress.matrix_view import to_matrix
from vqcompress.methods import METHODS
from vqcompress.quantizers import quantizer_of, settings_for
from vqcompress.quantizers.bit_allocation import MIN_RATE, LayerCost, allocate_bits, allocate_whole_bits
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.recipe import Recipe
from vqcompress.stages.output_recording import teacher_calls
from vqcompress.stages.recording import moment_of
from vqcompress.stages.run import Run, dense_bits

SCALAR_BITS = (2, 8)  # widths that scalar codes may have


def allocate(run: Run, component: str, layers: list[str], groups: dict[str, str]) -> dict[str, float]:
    """Bits for each layer: the same for all, or from a model-wide budget by what its error costs."""
    recipe = run.recipe
    if not recipe.shares_budget:
        return dict.fromkeys(layers, recipe.bits)
    importance = importance_of_layers(run, component, layers)

    def make() -> dict[str, float]:
        keys = dict.fromkeys(groups.get(layer) for layer in layers)
        columns = {key: _columns(run, component, key) for key in keys}
        quantizer, settings = quantizer_of(recipe.method), settings_for(recipe.method, recipe.settings)
        costs = {}
        for layer in layers:
            weight = to_matrix(run.weight(component, layer)).float()
            sensitivity, propagated = columns[groups.get(layer)] or (torch.ones(weight.shape[1]), None)
            energy = quantizer.energy(weight, settings)
            costs[layer] = LayerCost(
                len(weight), sensitivity, energy, importance[layer], propagated, dense_bits(weight)
            )
        if METHODS[recipe.method].whole_bits:
            return {layer: float(bits) for layer, bits in allocate_whole_bits(costs, recipe.bits, *SCALAR_BITS).items()}
        weights = sum(cost.weights for cost in costs.values())
        return allocate_bits(costs, max(MIN_RATE, recipe.bits - _codebook_bits(recipe) / weights))

    return run.main_process_first(lambda: run.store.load_or_make_json(f"{component}.bits", "all", make))


def _codebook_bits(recipe: Recipe) -> int:
    """Bits of the float16 codebooks that the component stores once for all layers; they come out of the budget."""
    shape = quantizer_of(recipe.method).codebook_shape
    if shape is None or not recipe.shared_codebooks:
        return 0
    return 16 * prod(shape(settings_for(recipe.method, recipe.settings), recipe.bits))


def importance_of_layers(run: Run, component: str, layers: list[str]) -> dict[str, float]:
    """Layer -> what its error costs the output. ``layers`` are all of the component's: they are estimated together."""
    return run.main_process_first(
        lambda: run.recordings.load_or_make_json(
            f"{component}.importance", "all", lambda: _importance(run, component, layers)
        )
    )


def _importance(run: Run, component: str, layers: list[str]) -> dict[str, float]:
    """How far each layer's error moves the denoiser's output; equal for parts that are not the denoiser."""
    if component != run.architecture.denoiser:
        return dict.fromkeys(layers, 1.0)
    return layer_importance(
        run.component(component),
        layers,
        teacher_calls(run),
        seed=run.recipe.seed,
        progress=lambda done, total, what: run.progress(f"importance {component}", done, total, what),
    )


def _columns(run: Run, component: str, group: str | None) -> tuple[Tensor, Tensor | None] | None:
    """Sensitivity of a group's columns, and their propagated error where that is known; None without samples."""
    moment = moment_of(run, component, group)
    if moment is None:
        return None
    feedback = prepare_feedback(moment)
    return feedback.sensitivity, feedback.propagated_error()
