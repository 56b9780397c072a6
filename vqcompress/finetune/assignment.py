"""What a recipe asks of a student: which parts of it may learn, and by what it is make_task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqcompress.errors import ArchitectureError
from vqcompress.finetune.dataset import DistillationData, weighted
from vqcompress.finetune.presets import training_preset
from vqcompress.finetune.task import StepConfig, WholeDenoiser
from vqcompress.finetune.widening import give_row_scales, give_tables
from vqcompress.layers import vq_layers
from vqcompress.recipe import Training
from vqcompress.workers import Workers


def make_task(
    denoiser: nn.Module,
    distillation: DistillationData,
    training: Training,
    guidance: float,
    scheduler: Any,
    seed: int,
    workers: Workers | None = None,
) -> WholeDenoiser:
    """``denoiser`` as it is, with the loss that the recipe asks for."""
    step_config = study_of(training, guidance, seed)
    distillation = weighted(distillation, training, scheduler, denoiser, step_config)
    return WholeDenoiser(denoiser, distillation.train, distillation.held_out, step_config, workers)


def widen(component: nn.Module, training: Training) -> None:
    """Row scales and tables as the recipe asks for. Raises `ArchitectureError` when nothing in ``component`` is packed."""
    if not vq_layers(component):
        raise ArchitectureError(f"{type(component).__name__} has no packed layers to fine-tune; compress it first")
    if training.row_scales and "scales" in training.learn:
        give_row_scales(component)
    if training.tables and "codebooks" in training.learn:
        give_tables(component, training.tables)


def study_of(training: Training, guidance: float, seed: int) -> StepConfig:
    """What a step is, by the recipe."""
    size = training_preset(training)
    dtype = getattr(torch, training.dtype)
    return StepConfig(size.batch_size, size.micro_batch, guidance, training.guided, seed, dtype)
