"""Before the blocks: the layers that make nearly all of the error are encoded again, in the metric of the loss.

Encoding by the second moment of a layer's inputs is blind to what becomes of its outputs. Knowing it
(`vqcompress.finetune.curvature`) is worth a third to a half of the error. Layers keep their bytes, and all of them their old codes
where held-out prompts do not gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.calibration.passes import in_order_within
from vqcompress.finetune.assignment import make_task
from vqcompress.finetune.curvature import LossMoment, drawn_units, from_tensors, loss_moments, to_tensors
from vqcompress.finetune.dataset import DistillationData
from vqcompress.finetune.encoder import loss_encoder
from vqcompress.finetune.layer_effects import EFFECT_UNITS, as_many_as_fit, layer_effects, worst_of
from vqcompress.finetune.presets import training_preset
from vqcompress.finetune.task import WholeDenoiser
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.matrix_view import matrix_shape
from vqcompress.progress import Progress, silent
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore
from vqcompress.working_memory import one_thread_each, usable_cores

STAGE, CODES, SPECS, TITLE = "finetune.worst", "finetune.worst.codes", "finetune.worst.specs", "encode again"


def encode_worst(
    denoiser: nn.Module,
    quantized: Mapping[str, QuantizedWeight],
    distillation: DistillationData,
    recipe: Recipe,
    guidance: float,
    scheduler: Any,
    store: RunStore,
    progress: Progress = silent,
) -> dict[str, QuantizedWeight]:
    """``quantized`` with new codes for the layers that make nearly all of the error; ``denoiser`` is dense, and stays as it is.

    One layer a core, each kept in ``store`` as soon as it is done; moments of as many at once as the recipe's memory budget holds. A
    recipe that grants no new codes gets none.
    """
    size = training_preset(recipe.training)
    if size.recode == 0:
        return dict(quantized)
    task = make_task(denoiser, distillation, recipe.training, guidance, scheduler, recipe.seed)
    encode, fresh = loss_encoder(recipe, tries=1), {}

    def choose() -> list[str]:
        errors = {name: _error(denoiser, name, packed) for name, packed in quantized.items()}
        effects = layer_effects(task, errors, drawn_units(len(task.train), EFFECT_UNITS, recipe.seed), recipe.seed)
        weights = {name: weight_of(denoiser, name).numel() for name in quantized}
        return as_many_as_fit(worst_of(effects), weights, size.encode_weights)

    def measure(names: list[str]) -> dict[str, Tensor]:
        units = drawn_units(len(task.train), size.encode_units, recipe.seed)
        return to_tensors(loss_moments(task, names, units, recipe.seed))

    names = store.load_or_make_json(STAGE, "worst", choose)
    needs = {name: _moment_bytes(denoiser, name) for name in names}
    for place, group in enumerate(in_order_within(needs, int(recipe.calibration.memory_budget_gb * 1e9))):
        key, moments = f"moments-{place}", {}
        if not (store.done(CODES) & store.done(SPECS)).issuperset(group):
            moments = from_tensors(store.load_or_make(STAGE, key, partial(measure, group)))

        def make(name: str, moments: Mapping[str, LossMoment] = moments) -> QuantizedWeight:
            weight = weight_of(denoiser, name)
            return _kept(store, name, quantized[name], lambda: encode(weight, moments[name], quantized[name]))

        with one_thread_each(), ThreadPoolExecutor(usable_cores()) as pool:
            for name, packed in zip(group, pool.map(make, group), strict=True):
                fresh[name] = packed
                progress(TITLE, len(fresh), len(names), name)
        store.discard(STAGE, key)
    old = {name: quantized[name] for name in names}
    gains = store.load_or_make_json(STAGE, "gains", lambda: _loss(task, fresh) < _loss(task, old))
    return {**quantized, **(fresh if gains else old)}


def _moment_bytes(denoiser: nn.Module, name: str) -> int:
    return sum(4 * side**2 for side in matrix_shape(weight_of(denoiser, name).shape))


def weight_of(denoiser: nn.Module, name: str) -> Tensor:
    """The dense weight of layer ``name``."""
    return denoiser.get_submodule(name).weight.detach()


def _error(denoiser: nn.Module, name: str, packed: QuantizedWeight) -> Callable[[], Tensor]:
    def error() -> Tensor:
        weight = weight_of(denoiser, name)
        return packed.decode().to(weight) - weight

    return error


def _kept(store: RunStore, name: str, before: QuantizedWeight, make: Callable[[], QuantizedWeight]) -> QuantizedWeight:
    """What ``make`` returns, now or in an earlier run."""

    def described() -> tuple[dict[str, Tensor], dict[str, Any]]:
        fresh = make()
        return dict(fresh.tensors), spec_to_dict(fresh.spec)

    tensors, spec = store.load_or_make_pair(CODES, SPECS, name, described)
    return QuantizedWeight(spec_from_dict(spec), before.shape, tensors, before.shared)


@torch.no_grad()
def _loss(task: WholeDenoiser, packed: Mapping[str, QuantizedWeight]) -> float:
    """On held-out units, with ``packed`` for the weights of these layers alone."""
    kept = {name: weight_of(task.denoiser, name).clone() for name in packed}
    try:
        for name, weight in packed.items():
            weight_of(task.denoiser, name).copy_(weight.decode())
        return task.measure()
    finally:
        for name, weight in kept.items():
            weight_of(task.denoiser, name).copy_(weight)
