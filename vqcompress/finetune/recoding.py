"""New codes for the layers that do most of the harm.

Fine-tuning cannot undo what a code got wrong, only shift it about. For the few layers that make most of the error there is
more to gain from other codes. They become dense again, and one after the other, the worst first:

1. all that is continuous learns, the weights of those still dense included: they make up for what the codes so far got wrong
   (Tseng et al. 2024, QuIP#, arXiv 2402.04396, section 5, does so within a block),
2. the layer is encoded from what its weight has become.

The metric of that encoding is not the second moment of the layer's inputs: one of the loss itself, ``E[Gᵀ G]`` over gradients ``G``
of random projections of the denoiser's output in the layer's weight (Tseng, Sun, De Sa 2025, YAQA, arXiv 2505.22988, section 3). It
knows which inputs occur where the output listens, and that errors of neighbouring pixels add up. If all that has not
brought down the loss on held-out prompts, the old codes come back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcompress.errors import RecipeError
from vqcompress.finetune.assignment import whole_denoiser
from vqcompress.finetune.descent import Descent, Schedule
from vqcompress.finetune.layer_effects import layer_effects
from vqcompress.finetune.learnable import make_learnable
from vqcompress.finetune.lessons import Lessons
from vqcompress.finetune.presets import Effort, effort
from vqcompress.finetune.settled import put_tensors, tensors_of
from vqcompress.finetune.whole import WholeDenoiser
from vqcompress.finetune.widening import describe_again
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.layers.dense import dense_layer
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.replace import put_layers
from vqcompress.matrix_view import matrix_shape, to_matrix
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import METHODS, quantize_weight, settings_for
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore

STAGE = "finetune.recoded"
SHRINKAGE = 0.01  # of the mean diagonal, added to moments of gradients, which few units make noisy
ENOUGH = 0.98  # of the harm: layers after that are left alone
EFFECT_UNITS = 48  # tell the worst layers
RATE, MATRICES = 0.5, 16.0  # of the usual rate, and of it for dense weights: they have far to go in few steps

Progress = Callable[[int, int, str], None]
Encode = Callable[[Tensor, Tensor, QuantizedWeight], QuantizedWeight]
"""``(weight, second moment [columns, columns], packed so far)`` -> packed anew, in no more bytes."""


@dataclass(frozen=True)
class Recoding:
    """Layers to encode anew, the worst first, with their original weights; and how to encode one."""

    originals: Mapping[str, Tensor]
    encode: Encode


def plan_recoding(
    denoiser: nn.Module,
    original: Callable[[], nn.Module],
    lessons: Lessons,
    recipe: Recipe,
    guidance: float,
    scheduler: Any,
    store: RunStore,
) -> Recoding | None:
    """The layers of the packed ``denoiser`` that do the most harm, as many as the recipe grants; ``None`` if it grants none.

    ``original`` gives the dense denoiser; it is asked once, unless ``store`` knows already, and needed no longer after that.
    """
    size = effort(recipe.training)
    if size.recode == 0:
        return None

    def choose() -> dict[str, Tensor]:
        task = whole_denoiser(denoiser, lessons, recipe.training, guidance, scheduler, recipe.seed)
        dense = original()
        effects = layer_effects(task, dense, drawn_units(len(task.train), EFFECT_UNITS, recipe.seed), recipe.seed)
        worst = sorted(effects, key=effects.__getitem__, reverse=True)[: size.recode]
        total, harm, chosen = sum(effects.values()), 0.0, {}
        for place, name in enumerate(worst):
            if harm < ENOUGH * total:
                # The place goes into the name: files of tensors keep no order.
                chosen[f"{_key(place)} {name}"] = dense.get_submodule(name).weight.detach().float().cpu()
            harm += effects[name]
        return chosen

    store.load_or_make(STAGE, "originals", choose)
    return found_recoding(store.folder, recipe)


def found_recoding(folder: Path, recipe: Recipe) -> Recoding | None:
    """What `plan_recoding` left in a run's folder, for processes that do not hold it."""
    if effort(recipe.training).recode == 0:
        return None
    found = load_file(folder / STAGE / "originals.safetensors")
    return Recoding({name.split(" ", 1)[1]: found[name] for name in sorted(found)}, _encoder(recipe))


def _encoder(recipe: Recipe) -> Encode:
    method, settings = METHODS[recipe.method], settings_for(recipe.method, recipe.settings)

    def encode(weight: Tensor, moment: Tensor, before: QuantizedWeight) -> QuantizedWeight:
        bits = getattr(before.spec, "bits", recipe.bits) if method.whole_bits else before.bits_per_weight
        return quantize_weight(
            weight, moment, method=recipe.method, bits=bits, seed=recipe.seed, settings=settings,
            shared_codebooks=before.shared.get("codebooks"),
        )  # fmt: skip

    return encode


class Recoder:
    """Gives the layers of ``recoding`` new codes, in place. Until it has run some of them are dense; ``old`` are the packed ones.

    Every layer that is done is kept in ``store``, the run's ``folder``, and found there by a later try and by the other processes.
    """

    def __init__(
        self,
        task: WholeDenoiser,
        recoding: Recoding,
        training: Training,
        size: Effort,
        folder: Path,
        store: RunStore | None,
    ) -> None:
        self.task, self.recoding, self.training, self.size = task, recoding, training, size
        self.folder, self.store = folder / STAGE, store
        self.denoiser, self.names = task.denoiser, list(recoding.originals)
        self.old = {name: _packed(self.denoiser, name) for name in self.names}

    def run(self, seed: int, progress: Progress) -> float:
        """Returns the relative change of the held-out loss, 0 where the old codes stayed."""
        before, values = self._loss(), tensors_of(self.denoiser)
        for name, weight in self.recoding.originals.items():
            self._put(name, dense_layer(self.old[name], weight.to(self.old[name].weight.device)))
        moments: dict[str, Tensor] = {}
        for index, name in enumerate(self.names):
            if not self._is_done(index):
                moments = moments or self._moments(seed)
                self._learn(index * self.size.recode_steps)
                if self.task.workers.is_first:
                    self._encode(index, moments[name])
                self.task.workers.wait()
                if not self.task.workers.is_first and not self._is_done(index):
                    self._encode(index, moments[name])
            if self._is_done(index):
                self._take(index)
            progress(index + 1, len(self.names), name)
        if (after := self._loss()) < before:
            describe_again(self.denoiser)
            return after / before - 1
        for name, layer in self.old.items():
            self._put(name, layer)
        put_tensors(self.denoiser, values)
        return 0.0

    def _learn(self, first_step: int) -> None:
        """What the codes so far got wrong is made up for by all that is continuous, and by weights that are dense still."""
        learnable = make_learnable(self.denoiser, self.training.learn)
        steps = self.size.recode_steps
        schedule = Schedule(steps, RATE * self.size.rate, measure_every=max(1, steps // 2), matrices=MATRICES)
        Descent(learnable, lambda step: self.task.gradient(first_step + step), self.task.measure, schedule).run()
        learnable.settle()

    def _encode(self, index: int, moment: Tensor) -> None:
        name = self.names[index]
        dense, old = self.denoiser.get_submodule(name), self.old[name]
        try:
            fresh = self.recoding.encode(dense.weight.detach(), moment, old.quantized_weight())
        except RecipeError:  # too small for what it has: dealing out can leave a layer less than anybody may ask for
            fresh = old.quantized_weight()
        self._put(name, type(old)(dense, fresh.spec, fresh.tensors, old.__dict__["shared_codebooks"]))
        if self.store is not None:
            self.store.put_json(STAGE, _key(index), spec_to_dict(fresh.spec))
            own = self.denoiser.get_submodule(name).named_parameters(prefix=name)
            codes = {key: parameter.detach() for key, parameter in own}
            self.store.load_or_make(STAGE, _key(index), lambda: {**tensors_of(self.denoiser), **codes})

    def _is_done(self, index: int) -> bool:
        return (self.folder / f"{_key(index)}.safetensors").exists()

    def _take(self, index: int) -> None:
        """A layer as it was left in the run's folder, and all that had been learned until then."""
        name = self.names[index]
        dense, old = self.denoiser.get_submodule(name), self.old[name]
        spec = spec_from_dict(json.loads((self.folder / f"{_key(index)}.json").read_text(encoding="utf-8")))
        kept = load_file(self.folder / f"{_key(index)}.safetensors")
        own = {key.removeprefix(f"{name}."): value for key, value in kept.items() if key.startswith(f"{name}.")}
        own = {key: value.to(old.weight.device) for key, value in own.items() if key != "bias"}
        if not isinstance(dense, PackedLayer):
            self._put(name, type(old)(dense, spec, own, old.__dict__["shared_codebooks"]))
        put_tensors(self.denoiser, kept)

    def _moments(self, seed: int) -> dict[str, Tensor]:
        """For every layer of ``names`` the second moment, over training units, of gradients of random projections in its weight.

        Float32 ``[columns, columns]``. Kept in the run's folder: a later try finds the student changed.
        """
        if self.store is not None:
            return self.store.load_or_make(STAGE, "moments", lambda: self._gradient_moments(seed))
        kept = self.folder / "moments.safetensors"
        return load_file(kept) if kept.exists() else self._gradient_moments(seed)

    def _gradient_moments(self, seed: int) -> dict[str, Tensor]:
        task, weights = self.task, [self.denoiser.get_submodule(name).weight for name in self.names]
        task.denoiser.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        generator = torch.Generator().manual_seed(seed)
        moments = [weight.new_zeros(2 * matrix_shape(weight.shape)[1:]) for weight in weights]
        with torch.enable_grad():
            for unit in drawn_units(len(task.train), self.size.recode_units, seed):
                slopes = torch.autograd.grad(task.projection(unit, generator), weights, allow_unused=True)
                for moment, slope in zip(moments, slopes, strict=True):
                    if slope is not None:
                        matrix = to_matrix(slope).float()
                        moment.addmm_(matrix.t(), matrix)
        for moment in moments:
            moment.diagonal().add_(SHRINKAGE * moment.diagonal().mean())
        return dict(zip(self.names, moments, strict=True))

    def _put(self, name: str, layer: nn.Module) -> None:
        put_layers(self.denoiser, {self.denoiser.get_submodule(name): layer})

    def _loss(self) -> float:
        with torch.no_grad():
            return self.task.measure()


def drawn_units(count: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` of ``count`` units (all, if there are not as many). At random: units lie in order of timestep within their shards."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist()


def _key(index: int) -> str:
    return f"{index:03d}"


def _packed(denoiser: nn.Module, name: str) -> PackedLayer:
    layer = denoiser.get_submodule(name)
    assert isinstance(layer, PackedLayer)
    return layer
