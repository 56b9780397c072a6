"""What there is to learn from: the teacher's calls on training prompts and on held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.denoiser_calls.dataset import DistillationDataset, record
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.finetune.noise_levels import noise_levels, tells_noise_levels
from vqcompress.finetune.objective import measured_weights, min_snr_weights, trajectory_weights
from vqcompress.finetune.presets import training_preset
from vqcompress.finetune.prompt_split import split_prompts
from vqcompress.finetune.task import StepConfig, WholeDenoiser
from vqcompress.progress import Progress
from vqcompress.recipe import Calibration, Training
from vqcompress.run_store import RunStore

TRAIN, HELD_OUT = "teacher.train", "teacher.held-out"
TRAIN_SEED, HELD_OUT_SEED = 100_000, 200_000  # noise that neither calibration nor evaluation starts from


@dataclass(frozen=True)
class DistillationData:
    """Training and held-out units."""

    train: DistillationDataset
    held_out: DistillationDataset


def record_distillation(
    pipeline: Pipeline,
    architecture: Architecture,
    prompts: Sequence[str],
    calibration_prompts: Sequence[str],
    store: RunStore,
    *,
    training: Training,
    calibration: Calibration,
    seed: int,
    progress: Progress,
) -> DistillationData:
    """Sample the teacher once, on prompts that calibration did not see; what is on disk already is not made again.

    The held-out part gets a tenth of the recording budget. Raises `CalibrationError` for too few prompts or too small a budget.
    """
    size = training_preset(training)
    key = _key(size.prompts, size.held_out, size.held_out_calls, training.budget_gb, seed, tuple(calibration_prompts))
    split = split_prompts(prompts, calibration_prompts, size.prompts, size.held_out, seed)

    def part(
        stage: str, chosen: Sequence[str], first_seed: int, calls: int | None, share: float
    ) -> DistillationDataset:
        run = SamplingRun(
            pipeline, architecture, tuple(chosen), seed + first_seed, calibration.sampling, calibration.batch_size
        )
        return record(
            run, store, f"{stage}-{key}", calls_per_batch=calls, budget=int(share * training.budget_gb * 1e9),
            progress=lambda done, total, what: progress(f"record {stage}", done, total, what),
        )  # fmt: skip

    return DistillationData(
        part(TRAIN, split.train, TRAIN_SEED, None, 0.9),
        part(HELD_OUT, split.held_out, HELD_OUT_SEED, size.held_out_calls, 0.1),
    )


def open_distillation(run_folder: Path) -> DistillationData:
    """The distillation that `record_distillation` left in a run's folder, for processes that do not hold it."""
    parts = [next(path.name for path in run_folder.glob(f"{stage}-????????")) for stage in (TRAIN, HELD_OUT)]
    return DistillationData(*(DistillationDataset.at(run_folder, part) for part in parts))


def weighted(
    distillation: DistillationData, training: Training, scheduler: Any, denoiser: nn.Module, step_config: StepConfig
) -> DistillationData:
    """The distillation with the weights that the recipe asks for; ``measured`` runs the untrained student on held-out units."""
    weighting = training.weighting or ("trajectory" if tells_noise_levels(scheduler) else "uniform")
    if weighting == "uniform":
        return distillation
    if weighting == "min-snr":
        train, held_out = (min_snr_weights(*noise_levels(scheduler, part.timesteps)) for part in _parts(distillation))
        return _with(distillation, train, held_out)
    if weighting == "trajectory":
        train = trajectory_weights(*noise_levels(scheduler, distillation.train.timesteps))
        held_out = _nearest(distillation.held_out.timesteps, distillation.train.timesteps, train)
        return _with(distillation, train, held_out / held_out.mean())
    with torch.no_grad():
        errors = WholeDenoiser(denoiser, distillation.train, distillation.held_out, step_config).unit_errors()
    held_out = measured_weights(distillation.held_out.timesteps, errors)
    train = _nearest(distillation.train.timesteps, distillation.held_out.timesteps, held_out)
    return _with(distillation, train / train.mean(), held_out)


def _with(distillation: DistillationData, train: Tensor, held_out: Tensor) -> DistillationData:
    return DistillationData(
        replace(distillation.train, weights=train), replace(distillation.held_out, weights=held_out)
    )


def _key(*settings: Any) -> str:
    """Names a recording by what it depends on beside the run's own signature, so that runs can share it."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _parts(distillation: DistillationData) -> tuple[DistillationDataset, DistillationDataset]:
    return distillation.train, distillation.held_out


def _nearest(timesteps: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """The value of the nearest known timestep, for each of ``timesteps``."""
    distinct = known.unique()
    means = torch.stack([values[known == time].mean() for time in distinct])
    return means[(timesteps[:, None] - distinct).abs().argmin(1)]
