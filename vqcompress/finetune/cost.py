"""What a fine-tuning run will need, measured on one step of it: memory, time, and room on disk."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.call_tensors import flatten, join, nest, spread_timestep
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.finetune.assignment import widen
from vqcompress.finetune.layer_effects import EFFECT_UNITS
from vqcompress.finetune.learnable import make_learnable
from vqcompress.finetune.presets import training_preset
from vqcompress.finetune.whole_stage import checkpointing
from vqcompress.layers import vq_layers
from vqcompress.matrix_view import matrix_shape
from vqcompress.recipe import Calibration, Training

STATES = 6  # float32 numbers a learning parameter: master, gradient, two moments, best, and the copy that is measured


@dataclass(frozen=True)
class Cost:
    """Bytes and seconds, rough; ``learning`` counts the parameters that learn, ``disk_bytes`` is for the teacher's calls."""

    learning: int
    peak_memory_bytes: int
    disk_bytes: int
    record_seconds: float
    train_seconds: float


def cost(
    pipeline: Pipeline, architecture: Architecture, prompt: str, *, training: Training, calibration: Calibration
) -> Cost:
    """Run one step on ``pipeline``, whose denoiser is packed, for ``prompt``, and multiply. The denoiser is left widened and learnable."""
    size = training_preset(training)
    denoiser: nn.Module = architecture.module(pipeline, architecture.denoiser)
    run = SamplingRun(pipeline, architecture, (prompt,), sampling=replace(calibration.sampling, steps=2))
    call = record_teacher(run, count=1, trajectory=1)[0]
    rows = len(call["output"])
    flat = spread_timestep(flatten(call["kwargs"]), rows)
    unit_bytes = sum(value.nbytes for value in flat.values() if isinstance(value, Tensor)) + call["output"].nbytes
    kwargs = nest(join([flat] * size.micro_batch, [rows] * size.micro_batch, 1))
    widen(denoiser, training)
    learnable = make_learnable(denoiser, training.learn)
    with checkpointing(denoiser, training.checkpointing):
        _measure(denoiser, kwargs)
        forward, both, saved = _measure(denoiser, kwargs)
    steps = calibration.sampling.resolve(architecture.defaults).steps
    learning = sum(parameter.numel() for parameter in learnable.parameters.values())
    # Three measurements for each layer that gets new codes; the largest layers, since nobody knows the worst ones yet.
    measured = size.held_out * size.held_out_calls * (1 + size.steps / size.measure_every + 3 * size.recode)
    shapes = sorted((matrix_shape(layer.dense_shape) for layer in vq_layers(denoiser).values()), key=math.prod)
    recoded = shapes[-size.recode :] if size.recode else []
    units = (size.steps + size.recode_steps * len(recoded)) * size.batch_size + size.recode_units + EFFECT_UNITS
    return Cost(
        learning=learning,
        peak_memory_bytes=_model_bytes(pipeline) + 4 * STATES * learning + saved + 2 * _largest_weight(denoiser)
        + sum(4 * (STATES * rows * columns + columns**2) for rows, columns in recoded),
        disk_bytes=int(min(training.budget_gb * 1e9, unit_bytes * (size.prompts * steps + size.held_out * size.held_out_calls)))
        + sum(4 * (rows * columns + columns**2) for rows, columns in recoded),
        record_seconds=(size.prompts + size.held_out) * steps * forward / size.micro_batch,
        train_seconds=(units * both + measured * forward) / size.micro_batch,
    )  # fmt: skip


def _measure(denoiser: nn.Module, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds forward, seconds forward and back, and bytes kept between the two."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = first_output(denoiser(**kwargs))
    forward = time.perf_counter() - start
    output.float().square().mean().backward()
    denoiser.zero_grad(set_to_none=True)
    return forward, time.perf_counter() - start, sum(kept.values())


def _model_bytes(pipeline: Pipeline) -> int:
    modules = [module for module in pipeline.components.values() if isinstance(module, nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _largest_weight(denoiser: nn.Module) -> int:
    return 4 * max(math.prod(layer.dense_shape) for layer in vq_layers(denoiser).values())
