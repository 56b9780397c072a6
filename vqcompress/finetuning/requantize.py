"""Requantize: encode the layers that contribute most to the loss again, in the metric of the loss.

The second moment of a layer's inputs says nothing about what becomes of its outputs. `vqcompress.finetuning.curvature`
does: codes that minimize its cost lower the loss by a third to a half. A layer keeps its size in bytes, and all
layers keep their old codes when the held-out loss does not fall.

This happens twice:

- `requantize_before_blocks`: all layers that matter, each for its own dense weight, side by side.
- `Requantizer`, when the blocks are done: fine-tuning can't undo an error of a code, only distribute it. The few
  layers that now contribute most become dense again. Then, the worst first, everything continuous learns for some
  steps, the weights of layers that are still dense included, and so compensates for the codes so far (Tseng et al.
  2024, QuIP#, arXiv 2402.04396, section 5, does so within a block); and the layer is encoded from what its weight has
  become.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.calibration.passes import in_order_within
from vqcompress.errors import RecipeError
from vqcompress.finetuning.context import TuningContext
from vqcompress.finetuning.curvature import (
    CONTRIBUTION_SAMPLES,
    Errors,
    LossMoment,
    draw_samples,
    from_tensors,
    loss_contributions,
    loss_moments,
    to_tensors,
)
from vqcompress.finetuning.learnable import make_learnable, put_tensors, require_packed, tensors_of
from vqcompress.finetuning.task import WholeDenoiser, make_task
from vqcompress.finetuning.trainer import Schedule, Trainer
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.layers import describe, vq_layers
from vqcompress.layers.description import write_description
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.replace import put_layers
from vqcompress.layers.swap import dense_layer
from vqcompress.matrix_view import matrix_shape
from vqcompress.methods import METHODS
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import quantize_weight, settings_for
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore
from vqcompress.working_memory import one_thread_each, usable_cores

# Names in run folders; runs that were stopped before they were renamed here go on.
WORST, CODES, SPECS = "finetune.worst", "finetune.worst.codes", "finetune.worst.specs"
WHOLE, MOMENTS, ORIGINALS = "finetune.recoded", "moments", "originals"
BEFORE_BLOCKS_TITLE, WHOLE_TITLE = "requantize before blocks", "requantize"
ENOUGH = 0.98  # of the loss: layers after that are left alone
RATE, MATRICES = 0.5, 16.0  # of the usual rate, and of it for dense weights: they have far to go in few steps

Encode = Callable[[Tensor, LossMoment, QuantizedWeight], QuantizedWeight]
"""``(weight, its moments, packed so far)`` -> packed again, in no more bytes; as it was, if it is too small for
that."""


def loss_encoder(recipe: Recipe, tries: int = 2) -> Encode:
    """Encodes by the recipe's method and settings; methods without output feedback use ``inputs`` alone.

    Of ``tries`` codes from different seeds the best is kept: seeds differ by a few percent of the error.
    """
    method = METHODS[recipe.method]
    searched = {"output_search": "survivors"} if method.output_feedback else {}  # few layers, which cost the most
    settings = settings_for(recipe.method, {**searched, **recipe.settings})
    tries = 1 if method.whole_bits else tries  # scalar codes draw nothing

    def encode(weight: Tensor, moment: LossMoment, before: QuantizedWeight) -> QuantizedWeight:
        bits = getattr(before.spec, "bits", recipe.bits) if method.whole_bits else before.bits_per_weight
        try:
            found = [
                quantize_weight(
                    weight, moment.inputs, method=recipe.method, bits=bits, seed=recipe.seed + place, settings=settings,
                    shared_codebooks=before.shared.get("codebooks"),
                    output_moment=moment.outputs if method.output_feedback else None,
                )
                for place in range(tries)
            ]  # fmt: skip
        except RecipeError:  # bit allocation may give a layer fewer bits than a recipe may ask for
            return before
        return min(found, key=lambda fresh: moment.cost(fresh.decode() - weight))

    return encode


def worst_layers(contributions: Mapping[str, float], count: int | None = None) -> list[str]:
    """The layers that together contribute nearly all of the loss, at most ``count``, the worst first."""
    total, covered, chosen = sum(contributions.values()), 0.0, []
    for name in sorted(contributions, key=contributions.__getitem__, reverse=True)[:count]:
        if covered < ENOUGH * total:
            chosen.append(name)
        covered += contributions[name]
    return chosen


def as_many_as_fit(names: Sequence[str], sizes: Mapping[str, int], room: int) -> list[str]:
    """``names`` from the first on, as many as ``room`` holds together; one that is too large is skipped."""
    chosen = []
    for name in names:
        if sizes[name] <= room:
            chosen.append(name)
            room -= sizes[name]
    return chosen


def requantize_before_blocks(
    denoiser: nn.Module,
    quantized: Mapping[str, QuantizedWeight],
    context: TuningContext,
    encode: Encode | None = None,
) -> dict[str, QuantizedWeight]:
    """``quantized`` with new codes for the layers that contribute nearly all of the loss; ``denoiser`` is dense and
    stays so.

    ``encode`` is `loss_encoder` by default. One layer a core, each kept in the run's store as soon as it is done;
    moments of as many layers at once as the recipe's memory budget holds. A recipe with ``requantize`` 0 gets
    ``quantized`` back.
    """
    recipe, preset, store = context.recipe, context.preset, context.store
    if preset.requantize == 0:
        return dict(quantized)
    task, fresh = make_task(denoiser, context), dict[str, QuantizedWeight]()
    encoder = encode or loss_encoder(recipe, tries=1)

    def choose() -> list[str]:
        weights = {name: _weight(denoiser, name).numel() for name in quantized}
        worst = worst_layers(_contributions(task, _packing_errors(denoiser, quantized), recipe.seed))
        return as_many_as_fit(worst, weights, preset.encode_weights)

    names = store.load_or_make_json(WORST, "worst", choose)
    needs = {name: _moment_bytes(denoiser, name) for name in names}
    for place, group in enumerate(in_order_within(needs, int(recipe.calibration.memory_budget_gb * 1e9))):
        key, moments = f"moments-{place}", dict[str, LossMoment]()
        if not (store.done(CODES) & store.done(SPECS)).issuperset(group):
            measure = partial(_measure_moments, task, group, preset.encode_samples, recipe.seed)
            moments = from_tensors(store.load_or_make(WORST, key, measure))

        def make(name: str, moments: Mapping[str, LossMoment] = moments) -> QuantizedWeight:
            weight = _weight(denoiser, name).cpu()
            return _kept(store, name, quantized[name], lambda: encoder(weight, moments[name], quantized[name]))

        with one_thread_each(), ThreadPoolExecutor(usable_cores()) as pool:
            for name, packed in zip(group, pool.map(make, group), strict=True):
                fresh[name] = packed
                context.progress(BEFORE_BLOCKS_TITLE, len(fresh), len(names), name)
        store.discard(WORST, key)
    old = {name: quantized[name] for name in names}
    gains = store.load_or_make_json(WORST, "gains", lambda: _loss_with(task, fresh) < _loss_with(task, old))
    return {**quantized, **(fresh if gains else old)}


@dataclass(frozen=True)
class Requantization:
    """Layers to encode again, the worst first, with their original weights (float32, CPU); and how to encode one."""

    originals: Mapping[str, Tensor]
    encode: Encode


def plan_requantization(
    denoiser: nn.Module, original: Callable[[], nn.Module], context: TuningContext
) -> Requantization | None:
    """The layers of the packed ``denoiser`` that contribute most, up to ``requantize``; ``None`` where that is 0.

    ``original`` returns the dense denoiser. The first process calls it once, unless the run's store has its weights
    already; it is not needed after that. Raises `ArchitectureError` when nothing is packed.
    """
    preset, store, seed = context.preset, context.store, context.recipe.seed
    if preset.requantize == 0:
        return None

    def choose() -> dict[str, Tensor]:
        require_packed(denoiser)
        dense = original()
        contributions = _contributions(make_task(denoiser, context), packed_errors(denoiser, dense), seed)
        # The place goes into the name: files of tensors keep no order.
        return {
            f"{_key(place)} {name}": dense.get_submodule(name).weight.detach().float().cpu()
            for place, name in enumerate(worst_layers(contributions, preset.requantize))
        }

    if not context.workers.is_main_process:  # they find what the first process has made
        context.workers.barrier()
    found = store.load_or_make(WHOLE, ORIGINALS, choose)
    if context.workers.is_main_process:
        context.workers.barrier()
    originals = {name.split(" ", 1)[1]: found[name] for name in sorted(found)}
    return Requantization(originals, loss_encoder(context.recipe))


class Requantizer:
    """Gives the layers of ``requantization`` new codes, in place.

    Until it has run some of them are dense; ``old`` are the packed ones. A layer that is done is kept in the run's
    store, where a later try and the other processes find it.
    """

    def __init__(self, task: WholeDenoiser, requantization: Requantization, context: TuningContext) -> None:
        self.task, self.requantization, self.context = task, requantization, context
        self.preset, self.store = context.preset, context.store
        self.denoiser, self.names = task.denoiser, list(requantization.originals)
        self.old = {name: _packed(self.denoiser, name) for name in self.names}

    def run(self) -> float:
        """Returns the relative change of the held-out loss, 0 where the old codes stayed."""
        before, values = self._loss(), tensors_of(self.denoiser)
        for name, weight in self.requantization.originals.items():
            self._put(name, dense_layer(self.old[name], weight.to(self.old[name].weight.device)))
        encodes, moments = self.task.workers.is_main_process, dict[str, LossMoment]()
        for index, name in enumerate(self.names):
            if not self._is_done(index):
                if encodes:
                    moments = moments or self._moments()
                self._learn(index * self.preset.requantize_steps)
                if encodes:
                    self._encode(index, moments[name])
                self.task.workers.barrier()
            self._take(index)
            self.context.progress(WHOLE_TITLE, index + 1, len(self.names), name)
        if (after := self._loss()) < before:
            _describe_again(self.denoiser)
            return after / before - 1
        for name, layer in self.old.items():
            self._put(name, layer)
        put_tensors(self.denoiser, values)
        return 0.0

    def _learn(self, first_step: int) -> None:
        """Everything continuous compensates for the codes so far, and so do weights that are still dense."""
        steps = self.preset.requantize_steps
        if steps == 0:
            return
        learnable = make_learnable(self.denoiser, self.context.training.learn, self.task.device)
        schedule = Schedule(steps, RATE * self.preset.rate, measure_every=max(1, steps // 2), matrices=MATRICES)
        Trainer(learnable, lambda step: self.task.gradient(first_step + step), self.task.measure, schedule).run()
        learnable.finalize()

    def _encode(self, index: int, moment: LossMoment) -> None:
        """Encode a layer and keep it in the store, with all that has been learned until now."""
        name, key = self.names[index], _key(index)
        dense, old = self.denoiser.get_submodule(name), self.old[name]
        fresh = self.requantization.encode(dense.weight.detach().cpu(), moment.to("cpu"), old.quantized_weight())
        tensors = {key: tensor.to(old.weight.device) for key, tensor in fresh.tensors.items()}
        self._put(name, type(old)(dense, fresh.spec, tensors, old.__dict__["shared_codebooks"]))
        own = self.denoiser.get_submodule(name).named_parameters(prefix=name)
        self.store.put_json(WHOLE, key, spec_to_dict(fresh.spec))
        self.store.put(WHOLE, key, tensors_of(self.denoiser) | {name: parameter.detach() for name, parameter in own})

    def _is_done(self, index: int) -> bool:
        return self.store.has_pair(WHOLE, WHOLE, _key(index))

    def _take(self, index: int) -> None:
        """Put in place what `_encode` kept."""
        name, key = self.names[index], _key(index)
        dense, old = self.denoiser.get_submodule(name), self.old[name]
        spec, kept = spec_from_dict(self.store.load_json(WHOLE, key)), self.store.load(WHOLE, key)
        own = {key.removeprefix(f"{name}."): value for key, value in kept.items() if key.startswith(f"{name}.")}
        own = {key: value.to(old.weight.device) for key, value in own.items() if key != "bias"}
        if not isinstance(dense, PackedLayer):
            self._put(name, type(old)(dense, spec, own, old.__dict__["shared_codebooks"]))
        put_tensors(self.denoiser, kept)

    def _moments(self) -> dict[str, LossMoment]:
        """Kept in the run's store: a later try finds a student that has changed."""
        samples, seed = self.preset.requantize_samples, self.context.recipe.seed
        measure = partial(_measure_moments, self.task, self.names, samples, seed)
        return from_tensors(self.store.load_or_make(WHOLE, MOMENTS, measure))

    def _put(self, name: str, layer: nn.Module) -> None:
        put_layers(self.denoiser, {self.denoiser.get_submodule(name): layer})

    def _loss(self) -> float:
        with torch.no_grad():
            return self.task.measure()


def _contributions(task: WholeDenoiser, errors: Errors, seed: int) -> dict[str, float]:
    return loss_contributions(task, errors, draw_samples(len(task.train), CONTRIBUTION_SAMPLES, seed), seed)


def _measure_moments(task: WholeDenoiser, names: Sequence[str], samples: int, seed: int) -> dict[str, Tensor]:
    return to_tensors(loss_moments(task, names, draw_samples(len(task.train), samples, seed), seed))


def _packing_errors(dense: nn.Module, quantized: Mapping[str, QuantizedWeight]) -> Errors:
    """Of layers that are to be packed."""

    def error_of(name: str, packed: QuantizedWeight) -> Tensor:
        weight = _weight(dense, name)
        return packed.decode().to(weight) - weight

    return {name: partial(error_of, name, packed) for name, packed in quantized.items()}


def packed_errors(student: nn.Module, dense: nn.Module) -> Errors:
    """The errors of the packed layers of ``student``; ``dense`` is the original denoiser."""

    def error_of(layer: PackedLayer, weight: Tensor) -> Tensor:
        return layer.dense_weight() - weight.to(layer.weight.device)

    return {name: partial(error_of, layer, _weight(dense, name)) for name, layer in vq_layers(student).items()}


def _kept(store: RunStore, name: str, before: QuantizedWeight, make: Callable[[], QuantizedWeight]) -> QuantizedWeight:
    """What ``make`` returns, now or in an earlier run."""

    def described() -> tuple[dict[str, Tensor], dict[str, Any]]:
        fresh = make()
        return dict(fresh.tensors), spec_to_dict(fresh.spec)

    tensors, spec = store.load_or_make_pair(CODES, SPECS, name, described)
    return QuantizedWeight(spec_from_dict(spec), before.shape, tensors, before.shared)


@torch.no_grad()
def _loss_with(task: WholeDenoiser, packed: Mapping[str, QuantizedWeight]) -> float:
    """The held-out loss of the dense denoiser with ``packed`` for the weights of these layers alone."""
    kept = {name: _weight(task.denoiser, name).clone() for name in packed}
    try:
        for name, weight in packed.items():
            _weight(task.denoiser, name).copy_(weight.decode())
        return task.measure()
    finally:
        for name, weight in kept.items():
            _weight(task.denoiser, name).copy_(weight)


def _describe_again(component: nn.Module) -> None:
    """Describe the component with its layers as they are now, and the reasons that it lists for dense ones."""
    found: Any = getattr(getattr(component, "config", None), "quantization_config", None) or {}
    before = found if isinstance(found, Mapping) else found.to_dict()
    write_description(component, describe(component, before.get("dense"), before.get("kept")))


def _weight(denoiser: nn.Module, name: str) -> Tensor:
    """The dense weight of layer ``name``."""
    return denoiser.get_submodule(name).weight.detach()


def _moment_bytes(denoiser: nn.Module, name: str) -> int:
    return sum(4 * side**2 for side in matrix_shape(_weight(denoiser, name).shape))


def _key(index: int) -> str:
    return f"{index:03d}"


def _packed(denoiser: nn.Module, name: str) -> PackedLayer:
    layer = denoiser.get_submodule(name)
    assert isinstance(layer, PackedLayer)
    return layer
