"""The distillation dataset of a run: the teacher's calls on training prompts and on held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.denoiser_calls.dataset import DistillationDataset, record
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError, CheckpointError
from vqcompress.finetuning.presets import training_preset
from vqcompress.progress import Progress, silent
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore

TRAIN, HELD_OUT = "teacher.train", "teacher.held-out"
TRAIN_SEED, HELD_OUT_SEED = 100_000, 200_000  # noise that neither calibration nor evaluation starts from


@dataclass(frozen=True)
class Teacher:
    """The dense pipeline, the prompts that it may draw, and those of them that calibration used."""

    pipeline: Pipeline
    architecture: Architecture
    prompts: Sequence[str]
    used_prompts: Sequence[str]


@dataclass(frozen=True)
class DistillationData:
    """Training and held-out samples."""

    train: DistillationDataset
    held_out: DistillationDataset


@dataclass(frozen=True)
class PromptSplit:
    """``train`` prompts for training; ``held_out`` prompts decide when to stop and which state to keep."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split_prompts(
    prompts: Sequence[str], calibration: Sequence[str], train: int, held_out: int, seed: int
) -> PromptSplit:
    """At most ``train`` prompts for training and ``held_out`` for early stopping, drawn by ``seed``.

    Those that ``calibration`` used are left out. When fewer remain, both shrink in proportion. Raises
    `CalibrationError` when fewer than two are left.
    """
    used = set(calibration)
    free = [prompt for prompt in dict.fromkeys(prompts) if prompt not in used]
    if len(free) < 2:
        raise CalibrationError(
            f"{len(free)} of {len(set(prompts))} prompts are left for fine-tuning after calibration took {len(used)}; "
            "give a larger prompt set (--prompts) or calibrate on fewer (--count)"
        )
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    share = min(1.0, len(free) / (train + held_out))
    stop = max(1, int(held_out * share))
    shuffled = [free[index] for index in order]
    return PromptSplit(tuple(shuffled[stop : stop + max(1, int(train * share))]), tuple(shuffled[:stop]))


def record_distillation(
    teacher: Teacher, recipe: Recipe, store: RunStore, progress: Progress = silent
) -> DistillationData:
    """Sample ``teacher`` once, on prompts that calibration did not use; what is on disk already is not made again.

    The held-out part gets a tenth of the recording budget. Raises `CalibrationError` for too few prompts or too small a
    budget.
    """
    training, calibration, preset = recipe.training, recipe.calibration, training_preset(recipe.training)
    used = tuple(teacher.used_prompts)
    key = _key(preset.prompts, preset.held_out, preset.held_out_calls, training.budget_gb, recipe.seed, used)
    split = split_prompts(teacher.prompts, used, preset.prompts, preset.held_out, recipe.seed)

    def part(
        stage: str, chosen: Sequence[str], first_seed: int, calls: int | None, share: float
    ) -> DistillationDataset:
        seed = recipe.seed + first_seed
        run = SamplingRun(
            teacher.pipeline, teacher.architecture, tuple(chosen), seed, calibration.sampling, calibration.batch_size
        )
        return record(
            run, store, f"{stage}-{key}", calls_per_batch=calls, budget=int(share * training.budget_gb * 1e9),
            progress=partial(progress, f"record {stage}"),
        )  # fmt: skip

    return DistillationData(
        part(TRAIN, split.train, TRAIN_SEED, None, 0.9),
        part(HELD_OUT, split.held_out, HELD_OUT_SEED, preset.held_out_calls, 0.1),
    )


def open_distillation(run_folder: Path) -> DistillationData:
    """What `record_distillation` left in a run's folder. Raises `CheckpointError` when a part is missing."""
    found = [next(run_folder.glob(f"{stage}-????????"), None) for stage in (TRAIN, HELD_OUT)]
    parts = [part.name for part in found if part is not None]
    if len(parts) < len(found):
        raise CheckpointError(
            f"{run_folder} lacks recorded outputs of the original ({TRAIN} or {HELD_OUT}); "
            "delete that folder and run again to record them"
        )
    return DistillationData(*(DistillationDataset.open(run_folder, part) for part in parts))


def _key(*settings: Any) -> str:
    """Names a recording by what it depends on beside the run's own signature, so that runs can share it."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
