"""Fine-tuning of a packed denoiser as a run: widened, trained, kept on disk while it trains, settled when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.finetune.assignment import make_task, widen
from vqcompress.finetune.dataset import DistillationData
from vqcompress.finetune.learnable import make_learnable
from vqcompress.finetune.presets import TrainingPreset, training_preset
from vqcompress.finetune.requantize import Requantization, Requantizer
from vqcompress.finetune.trainer import Outcome, Schedule, Trainer
from vqcompress.progress import Progress, silent
from vqcompress.recipe import Training
from vqcompress.run_store import RunStore, read_tensors
from vqcompress.workers import Workers

STATES, DONE, TITLE, RECODE_TITLE = "finetune.states", "finetune.done", "fine-tune", "new codes"


def tune_whole(
    denoiser: nn.Module,
    distillation: DistillationData,
    folder: Path,
    store: RunStore | None,
    *,
    training: Training,
    guidance: float,
    scheduler: Any = None,
    seed: int = 0,
    workers: Workers | None = None,
    requantization: Requantization | None = None,
    keep_seconds: float = 60.0,
    progress: Progress = silent,
) -> Outcome:
    """Let what is continuous in the packed ``denoiser`` learn the teacher's recorded outputs, in place; codes stay, but for the
    layers of ``requantization``.

    ``folder`` is the run's; ``store``, the same folder held, is ``None`` in all processes but the first. A run that was stopped goes on
    from its last kept state and ends in the same bytes. Raises `ArchitectureError` when nothing is packed.
    """
    workers = workers or Workers()
    size = training_preset(training)
    widen(denoiser, training)
    task = make_task(denoiser, distillation, training, guidance, scheduler, seed, workers)
    with checkpointing(denoiser, training.checkpointing):
        if requantization is not None:
            change = Requantizer(task, requantization, training, size, folder, store).run(
                seed, lambda done, total, what: progress(RECODE_TITLE, done, total, what)
            )
    learnable = make_learnable(denoiser, training.learn)
    trainer = Trainer(
        learnable, task.gradient, task.measure, schedule_of(size),
        keep=None if store is None else lambda state: _keep(store, state), keep_seconds=keep_seconds,
        progress=lambda done, total, what: progress(TITLE, done, total, what),
    )  # fmt: skip
    if (state := _last_state(folder)) is not None:
        trainer.restore(state)
    with checkpointing(denoiser, training.checkpointing):
        outcome = trainer.run()
    workers.barrier()
    learnable.finalize()
    return outcome if requantization is None else replace(outcome, before=outcome.before / (1 + change))


def schedule_of(size: TrainingPreset) -> Schedule:
    """The whole denoiser's schedule."""
    return Schedule(size.steps, size.rate, measure_every=size.measure_every, patience=size.patience)


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
    store.put(STATES, key, state)
    for past in older:
        store.discard(STATES, past)


def _last_state(folder: Path) -> dict[str, Tensor] | None:
    found = sorted((folder / STATES).glob("*.safetensors"))
    return read_tensors(found[-1]) if found else None
