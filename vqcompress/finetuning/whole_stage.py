"""The whole stage: a packed denoiser learns as a whole, kept on disk while it trains, finalized when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.finetuning.context import TuningContext
from vqcompress.finetuning.learnable import make_learnable, require_packed
from vqcompress.finetuning.presets import TrainingPreset
from vqcompress.finetuning.requantize import Requantization, Requantizer
from vqcompress.finetuning.task import make_task
from vqcompress.finetuning.trainer import Outcome, Schedule, Trainer
from vqcompress.run_store import RunStore

STATES, TITLE = "finetune.states", "fine-tune"


def tune_whole(
    denoiser: nn.Module,
    context: TuningContext,
    requantization: Requantization | None = None,
    *,
    keep_seconds: float = 60.0,
) -> Outcome:
    """Fine-tune what is continuous in the packed ``denoiser`` on the teacher's recorded outputs, in place.

    Codes stay, except for the layers of ``requantization``. The full state is kept in the run's store every
    ``keep_seconds``: a run that was stopped resumes from the last one and ends in the same bytes. Raises
    `ArchitectureError` when nothing is packed, and when gradient checkpointing is asked for that the denoiser lacks.
    """
    training, store, workers = context.training, context.store, context.workers
    require_packed(denoiser)
    task = make_task(denoiser, context)
    change = 0.0
    if requantization is not None:
        with checkpointing(denoiser, training.checkpointing):
            change = Requantizer(task, requantization, context).run()
    learnable = make_learnable(denoiser, training.learn, task.device)
    trainer = Trainer(
        learnable, task.gradient, task.measure, schedule_of(context.preset),
        keep=(lambda state: _keep(store, state)) if workers.is_main_process else None, keep_seconds=keep_seconds,
        progress=partial(context.progress, TITLE),
    )  # fmt: skip
    if kept := store.done(STATES):
        trainer.restore(store.load(STATES, max(kept)))
    with checkpointing(denoiser, training.checkpointing):
        outcome = trainer.run()
    workers.barrier()
    learnable.finalize()
    return outcome if requantization is None else replace(outcome, before=outcome.before / (1 + change))


def schedule_of(preset: TrainingPreset) -> Schedule:
    """The whole denoiser's schedule."""
    return Schedule(preset.steps, preset.rate, measure_every=preset.measure_every, patience=preset.patience)


@contextmanager
def checkpointing(denoiser: nn.Module, wanted: bool) -> Iterator[None]:
    """With activations recomputed in the backward pass. Raises `ArchitectureError` where the denoiser can't do that."""
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
    """The newest state replaces the older ones, which are deleted when it is safely on disk."""
    key = f"{int(state['step']):09d}"
    older = store.done(STATES) - {key}
    store.put(STATES, key, state)
    for past in older:
        store.discard(STATES, past)
