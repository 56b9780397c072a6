"""What a fine-tuning run will need, measured on one step of it: memory, time and disk."""

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
from vqcompress.finetuning.curvature import CONTRIBUTION_SAMPLES
from vqcompress.finetuning.learnable import make_learnable, require_packed
from vqcompress.finetuning.presets import TrainingPreset, training_preset
from vqcompress.finetuning.whole_stage import checkpointing
from vqcompress.layers import vq_layers
from vqcompress.matrix_view import matrix_shape
from vqcompress.placement import networks
from vqcompress.recipe import Recipe

COPIES = 6  # in float32, of what learns: master, gradient, two moments, best state, and the copy that is measured


@dataclass(frozen=True)
class Cost:
    """Bytes and seconds, rough; ``learning`` counts numbers that learn, ``disk_bytes`` is mostly the teacher's
    calls."""

    learning: int
    peak_memory_bytes: int
    disk_bytes: int
    record_seconds: float
    train_seconds: float


def cost(pipeline: Pipeline, architecture: Architecture, recipe: Recipe, prompt: str) -> Cost:
    """Run one step on ``pipeline``, whose denoiser is packed, for ``prompt``, and multiply.

    The denoiser is left learnable. Raises `ArchitectureError` when nothing in it is packed.
    """
    training, calibration, preset = recipe.training, recipe.calibration, training_preset(recipe.training)
    denoiser: nn.Module = architecture.module(pipeline, architecture.denoiser)
    require_packed(denoiser)
    run = SamplingRun(pipeline, architecture, (prompt,), sampling=replace(calibration.sampling, steps=2))
    call = record_teacher(run, count=1, trajectory=1)[0]
    batch_size = len(call["output"])
    flat = spread_timestep(flatten(call["kwargs"]), batch_size)
    sample_bytes = sum(value.nbytes for value in flat.values() if isinstance(value, Tensor)) + call["output"].nbytes
    kwargs = nest(join([flat] * preset.micro_batch, [batch_size] * preset.micro_batch, 1))
    learnable = make_learnable(denoiser, training.learn)
    with checkpointing(denoiser, training.checkpointing):
        _measure(denoiser, kwargs)
        forward, both, saved = _measure(denoiser, kwargs)
    steps = calibration.sampling.resolve(architecture.defaults).steps
    learning = sum(parameter.numel() for parameter in learnable.parameters.values())
    # The largest layers, since which ones contribute most is not known yet.
    shapes = sorted((matrix_shape(layer.dense_shape) for layer in vq_layers(denoiser).values()), key=math.prod)
    requantized = shapes[-preset.requantize :] if preset.requantize else []
    trained, measured = _samples(preset, len(requantized))
    recorded = preset.prompts * steps + preset.held_out * preset.held_out_calls
    return Cost(
        learning=learning,
        peak_memory_bytes=_model_bytes(pipeline) + 4 * COPIES * learning + saved + 2 * _largest_weight(denoiser)
        + sum(4 * (COPIES * outputs * columns + columns**2) for outputs, columns in requantized),
        disk_bytes=int(min(training.budget_gb * 1e9, sample_bytes * recorded))
        + sum(4 * (outputs * columns + columns**2) for outputs, columns in requantized),
        record_seconds=(preset.prompts + preset.held_out) * steps * forward / preset.micro_batch,
        train_seconds=(trained * both + measured * forward) / preset.micro_batch,
    )  # fmt: skip


def _samples(preset: TrainingPreset, requantized: int) -> tuple[float, float]:
    """How many samples go forward and back, and how many only forward, with so many layers requantized."""
    trained = (preset.steps + preset.requantize_steps * requantized) * preset.batch_size
    measurements = 1 + preset.steps / preset.measure_every + 3 * preset.requantize
    return (
        trained + preset.requantize_samples + CONTRIBUTION_SAMPLES,
        preset.held_out * preset.held_out_calls * measurements,
    )


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
    return sum(p.nbytes for network in networks(pipeline).values() for p in network.parameters())


def _largest_weight(denoiser: nn.Module) -> int:
    return 4 * max(math.prod(layer.dense_shape) for layer in vq_layers(denoiser).values())
