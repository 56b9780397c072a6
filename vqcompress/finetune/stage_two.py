"""Fine-tuning of a packed denoiser as a run: widened, trained, kept on disk while it trains, settled when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.finetune.descent import Descent, Outcome, Schedule
from vqcompress.finetune.learnable import make_learnable
from vqcompress.finetune.lessons import Lessons, weighted
from vqcompress.finetune.presets import Effort, effort
from vqcompress.finetune.whole import Study, WholeDenoiser
from vqcompress.finetune.widening import give_row_scales, give_tables
from vqcompress.layers import vq_layers
from vqcompress.recipe import Training
from vqcompress.run_store import RunStore
from vqcompress.workers import Workers

Progress = Callable[[str, int, int, str], None]

STATES, DONE, TITLE = "finetune.states", "finetune.done", "fine-tune"


def tune_whole(
    denoiser: nn.Module,
    lessons: Lessons,
    folder: Path,
    store: RunStore | None,
    *,
    training: Training,
    guidance: float,
    scheduler: Any = None,
    seed: int = 0,
    workers: Workers | None = None,
    keep_seconds: float = 60.0,
    progress: Progress = lambda stage, done, total, what: None,
) -> Outcome:
    """Let what is continuous in the packed ``denoiser`` learn the teacher's recorded outputs, in place; codes stay.

    ``folder`` is the run's; ``store``, the same folder held, is ``None`` in all processes but the first. A run that was stopped goes on
    from its last kept state and ends in the same bytes. Raises `ArchitectureError` when nothing is packed.
    """
    workers = workers or Workers()
    widen(denoiser, training)
    learnable = make_learnable(denoiser, training.learn)
    study = study_of(training, guidance, seed)
    lessons = weighted(lessons, training, scheduler, denoiser, study)
    task = WholeDenoiser(denoiser, lessons.train, lessons.held_out, study, workers)
    descent = Descent(
        learnable, task.gradient, task.measure, schedule_of(effort(training)),
        keep=None if store is None else lambda state: _keep(store, state), keep_seconds=keep_seconds,
        progress=lambda done, total, what: progress(TITLE, done, total, what),
    )  # fmt: skip
    if (state := _last_state(folder)) is not None:
        descent.restore(state)
    with checkpointing(denoiser, training.checkpointing):
        outcome = descent.run()
    workers.wait()
    learnable.settle()
    return outcome


def widen(component: nn.Module, training: Training) -> None:
    """Row scales and tables as the recipe asks for. Raises `ArchitectureError` when nothing in ``component`` is packed."""
    if not vq_layers(component):
        raise ArchitectureError(f"{type(component).__name__} has no packed layers to fine-tune; compress it first")
    if training.row_scales and "scales" in training.learn:
        give_row_scales(component)
    if training.tables and "codebooks" in training.learn:
        give_tables(component, training.tables)


def study_of(training: Training, guidance: float, seed: int) -> Study:
    """What a step is, by the recipe."""
    size = effort(training)
    dtype = getattr(torch, training.dtype)
    return Study(size.batch_size, size.micro_batch, guidance, training.guided, seed, dtype)


def schedule_of(size: Effort) -> Schedule:
    """The whole denoiser's schedule."""
    return Schedule(size.steps, size.rate, measure_every=size.measure_every, patience=size.patience)


def tensors_of(component: nn.Module) -> dict[str, Tensor]:
    """Every floating-point tensor of a settled component: what fine-tuning may have changed."""
    return {name: p.detach() for name, p in component.named_parameters() if p.is_floating_point()}


@torch.no_grad()
def put_tensors(component: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `tensors_of`, into a component that was widened the same way."""
    for name, parameter in component.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])


@contextmanager
def checkpointing(denoiser: nn.Module, wanted: bool) -> Iterator[None]:
    """With activations recomputed in the backward pass, where the denoiser can do that."""
    if not wanted:
        yield
        return
    if not getattr(denoiser, "_supports_gradient_checkpointing", False):
        raise ArchitectureError(
            f"{type(denoiser).__name__} has no gradient checkpointing; turn it off and lower micro_batch instead"
        )
    model: Any = denoiser
    model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        model.disable_gradient_checkpointing()


def _keep(store: RunStore, state: Mapping[str, Tensor]) -> None:
    """The newest state takes the place of the older ones, which go when it is safely there."""
    key = f"{int(state['step']):09d}"
    older = store.done(STATES) - {key}
    store.load_or_make(STATES, key, lambda: state)
    for past in older:
        store.discard(STATES, past)


def _last_state(folder: Path) -> dict[str, Tensor] | None:
    found = sorted((folder / STATES).glob("*.safetensors"))
    return load_file(found[-1]) if found else None
