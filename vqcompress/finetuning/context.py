"""What all stages of one fine-tuning run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.finetuning.dataset import DistillationData
from vqcompress.finetuning.presets import TrainingPreset, training_preset
from vqcompress.progress import Progress, silent
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore
from vqcompress.workers import Workers


@dataclass(frozen=True)
class StepConfig:
    """One training step: samples a step, samples at once in memory, guidance in the loss, autocast dtype, seed."""

    batch_size: int
    micro_batch: int
    guidance: float
    guided: float
    seed: int
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class TuningContext:
    """The recipe of a run, its dataset, what the sampler does with the denoiser, and where results go.

    ``guidance`` is the scale that sampling uses. ``scheduler`` is the pipeline's, or ``None``; it may know the noise
    level of a timestep. All processes of ``workers`` have ``store`` open, and the first alone writes to it.
    """

    recipe: Recipe
    preset: TrainingPreset
    distillation: DistillationData
    guidance: float
    store: RunStore
    scheduler: Any = None
    workers: Workers = field(default_factory=Workers)
    progress: Progress = silent

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        architecture: Architecture,
        recipe: Recipe,
        distillation: DistillationData,
        store: RunStore,
        **options: Any,
    ) -> TuningContext:
        """For ``recipe`` on ``pipeline``, dense or packed; ``options`` are ``workers`` and ``progress``."""
        guidance = recipe.calibration.sampling.resolve(architecture.defaults).guidance
        scheduler = getattr(pipeline, "scheduler", None)
        preset = training_preset(recipe.training)
        return cls(recipe, preset, distillation, guidance, store, scheduler, **options)

    @property
    def training(self) -> Training:
        """The recipe's part on fine-tuning."""
        return self.recipe.training

    @property
    def step_config(self) -> StepConfig:
        """One step on the whole denoiser."""
        return StepConfig(
            self.preset.batch_size,
            self.preset.micro_batch,
            self.guidance,
            self.training.guided,
            self.recipe.seed,
            getattr(torch, self.training.dtype),
        )
