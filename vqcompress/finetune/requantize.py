"""New codes for the layers that do most of the harm.

Fine-tuning cannot undo what a code got wrong, only shift it about. For the few layers that make most of the error there is
more to gain from other codes. They become dense again, and one after the other, the worst first:

1. all that is continuous learns, the weights of those still dense included: they make up for what the codes so far got wrong
   (Tseng et al. 2024, QuIP#, arXiv 2402.04396, section 5, does so within a block),
2. the layer is encoded from what its weight has become.

The metric of that encoding is the loss's (`vqcompress.finetune.curvature`). If all that has not
brought down the loss on held-out prompts, the old codes come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.finetune.assignment import make_task, widen
from vqcompress.finetune.curvature import LossMoment, drawn_units, from_tensors, loss_moments, to_tensors
from vqcompress.finetune.dataset import DistillationData
from vqcompress.finetune.encoder import Encode, loss_encoder
from vqcompress.finetune.layer_effects import EFFECT_UNITS, layer_effects, packed_errors, worst_of
from vqcompress.finetune.learnable import make_learnable
from vqcompress.finetune.presets import TrainingPreset, training_preset
from vqcompress.finetune.state import put_tensors, tensors_of
from vqcompress.finetune.task import WholeDenoiser
from vqcompress.finetune.trainer import Schedule, Trainer
from vqcompress.finetune.widening import describe_again
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.replace import put_layers
from vqcompress.layers.swap import dense_layer
from vqcompress.progress import StageProgress
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore, read_json, read_tensors

STAGE, MOMENTS = "finetune.recoded", "moments"
RATE, MATRICES = 0.5, 16.0  # of the usual rate, and of it for dense weights: they have far to go in few steps


@dataclass(frozen=True)
class Requantization:
    """Layers to encode anew, the worst first, with their original weights; and how to encode one."""

    originals: Mapping[str, Tensor]
    encode: Encode


def plan_requantization(
    denoiser: nn.Module,
    original: Callable[[], nn.Module],
    distillation: DistillationData,
    recipe: Recipe,
    guidance: float,
    scheduler: Any,
    store: RunStore,
) -> Requantization | None:
    """The layers of the packed ``denoiser`` that do the most harm, as many as the recipe grants; ``None`` if it grants none.

    ``original`` gives the dense denoiser; it is asked once, unless ``store`` knows already, and needed no longer after that.
    """
    size = training_preset(recipe.training)
    if size.recode == 0:
        return None

    def choose() -> dict[str, Tensor]:
        widen(denoiser, recipe.training)
        task = make_task(denoiser, distillation, recipe.training, guidance, scheduler, recipe.seed)
        dense = original()
        units = drawn_units(len(task.train), EFFECT_UNITS, recipe.seed)
        effects = layer_effects(task, packed_errors(denoiser, dense), units, recipe.seed)
        # The place goes into the name: files of tensors keep no order.
        return {
            f"{_key(place)} {name}": dense.get_submodule(name).weight.detach().float().cpu()
            for place, name in enumerate(worst_of(effects, size.recode))
        }

    store.load_or_make(STAGE, "originals", choose)
    return open_requantization(store.folder, recipe)


def open_requantization(folder: Path, recipe: Recipe) -> Requantization | None:
    """What `plan_requantization` left in a run's folder, for processes that do not hold it."""
    if training_preset(recipe.training).recode == 0:
        return None
    found = read_tensors(folder / STAGE / "originals.safetensors")
    return Requantization({name.split(" ", 1)[1]: found[name] for name in sorted(found)}, loss_encoder(recipe))


class Requantizer:
    """Gives the layers of ``requantization`` new codes, in place. Until it has run some of them are dense; ``old`` are the packed ones.

    Every layer that is done is kept in ``store``, the run's ``folder``, and found there by a later try and by the other processes.
    """

    def __init__(
        self,
        task: WholeDenoiser,
        requantization: Requantization,
        training: Training,
        size: TrainingPreset,
        folder: Path,
        store: RunStore | None,
    ) -> None:
        self.task, self.requantization, self.training, self.size = task, requantization, training, size
        self.folder, self.store = folder / STAGE, store
        self.denoiser, self.names = task.denoiser, list(requantization.originals)
        self.old = {name: _packed(self.denoiser, name) for name in self.names}

    def run(self, seed: int, progress: StageProgress) -> float:
        """Returns the relative change of the held-out loss, 0 where the old codes stayed."""
        before, values = self._loss(), tensors_of(self.denoiser)
        for name, weight in self.requantization.originals.items():
            self._put(name, dense_layer(self.old[name], weight.to(self.old[name].weight.device)))
        moments: dict[str, LossMoment] = {}
        for index, name in enumerate(self.names):
            if not self._is_done(index):
                moments = moments or self._moments(seed)
                self._learn(index * self.size.recode_steps)
                if self.task.workers.is_main_process:
                    self._encode(index, moments[name])
                self.task.workers.barrier()
                if not self.task.workers.is_main_process and not self._is_done(index):
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
        steps = self.size.recode_steps
        if steps == 0:
            return
        learnable = make_learnable(self.denoiser, self.training.learn)
        schedule = Schedule(steps, RATE * self.size.rate, measure_every=max(1, steps // 2), matrices=MATRICES)
        Trainer(learnable, lambda step: self.task.gradient(first_step + step), self.task.measure, schedule).run()
        learnable.finalize()

    def _encode(self, index: int, moment: LossMoment) -> None:
        name = self.names[index]
        dense, old = self.denoiser.get_submodule(name), self.old[name]
        fresh = self.requantization.encode(
            dense.weight.detach(), moment.to(dense.weight.device), old.quantized_weight()
        )
        self._put(name, type(old)(dense, fresh.spec, fresh.tensors, old.__dict__["shared_codebooks"]))
        if self.store is not None:
            self.store.put_json(STAGE, _key(index), spec_to_dict(fresh.spec))
            own = self.denoiser.get_submodule(name).named_parameters(prefix=name)
            codes = {key: parameter.detach() for key, parameter in own}
            self.store.put(STAGE, _key(index), {**tensors_of(self.denoiser), **codes})

    def _is_done(self, index: int) -> bool:
        return all((self.folder / (_key(index) + suffix)).exists() for suffix in (".safetensors", ".json"))

    def _take(self, index: int) -> None:
        """A layer as it was left in the run's folder, and all that had been learned until then."""
        name = self.names[index]
        dense, old = self.denoiser.get_submodule(name), self.old[name]
        spec = spec_from_dict(read_json(self.folder / f"{_key(index)}.json"))
        kept = read_tensors(self.folder / f"{_key(index)}.safetensors")
        own = {key.removeprefix(f"{name}."): value for key, value in kept.items() if key.startswith(f"{name}.")}
        own = {key: value.to(old.weight.device) for key, value in own.items() if key != "bias"}
        if not isinstance(dense, PackedLayer):
            self._put(name, type(old)(dense, spec, own, old.__dict__["shared_codebooks"]))
        put_tensors(self.denoiser, kept)

    def _moments(self, seed: int) -> dict[str, LossMoment]:
        """Kept in the run's folder: a later try finds the student changed."""
        kept = self.folder / f"{MOMENTS}.safetensors"
        if self.store is not None:
            return from_tensors(self.store.load_or_make(STAGE, MOMENTS, lambda: to_tensors(self._fresh_moments(seed))))
        return from_tensors(read_tensors(kept)) if kept.exists() else self._fresh_moments(seed)

    def _fresh_moments(self, seed: int) -> dict[str, LossMoment]:
        units = drawn_units(len(self.task.train), self.size.recode_units, seed)
        return loss_moments(self.task, self.names, units, seed)

    def _put(self, name: str, layer: nn.Module) -> None:
        put_layers(self.denoiser, {self.denoiser.get_submodule(name): layer})

    def _loss(self) -> float:
        with torch.no_grad():
            return self.task.measure()


def _key(index: int) -> str:
    return f"{index:03d}"


def _packed(denoiser: nn.Module, name: str) -> PackedLayer:
    layer = denoiser.get_submodule(name)
    assert isinstance(layer, PackedLayer)
    return layer
