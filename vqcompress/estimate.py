"""Estimates the size, memory and time of a run without running it: `vqcompress quantize --dry-run`."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.architectures.known_names import known_name
from vqcompress.architectures.published_skeleton import Skeleton, published_skeleton
from vqcompress.calibration.prompts import HUB, load_prompts
from vqcompress.disk import free_bytes
from vqcompress.formats.scalar import FLOAT_SCALES
from vqcompress.matrix_view import matrix_shape
from vqcompress.methods import METHODS
from vqcompress.placement import Placement, networks
from vqcompress.quantizers import quantize_weight, settings_for
from vqcompress.recipe import Recipe
from vqcompress.stages.encoding import encoding_bytes
from vqcompress.stages.forecast import Call, Needs, Work, forecast, samples_of_a_call
from vqcompress.stages.prompt_count import fitted_count
from vqcompress.working_memory import one_thread_each

SAMPLE = (256, 256)  # shape of the weight that is encoded to measure this machine's speed
WIDTHS = (2.0, 3.0, 4.0)  # bits per weight for which every estimate lists the size


def estimate(model: str, recipe: Recipe, placement: Placement | None = None) -> dict[str, Any]:
    """Layers, bytes, memory and time of a run of ``recipe`` on ``model``. Encoding speed is measured on a small weight.

    Published models (`architectures.published`) are planned on the meta device: nothing is downloaded or allocated.
    ``parts`` says whether memory is that of the whole pipeline or of the denoiser alone, and ``obstacle`` why this
    machine could not run the pipeline, if so. Sizes are in bytes. Moments and passes are upper bounds, because layers
    with the same input tensor share their moment. ``forecast`` has what `stages.forecast` computes for ``placement``.
    """
    placement = placement or Placement.parse("cpu")
    planned = _planned(model, recipe)
    architecture, pipeline = planned.architecture, planned.pipeline
    recipe = _counted(recipe, architecture)
    ignore = None if recipe.ignore is None else list(recipe.ignore.items())
    components = recipe.components or architecture.denoisers
    plans = [plan for name in components for plan in architecture.layers(pipeline, name, ignore=ignore)]
    quantized = [plan for plan in plans if plan.reason is None]
    weights = sum(p.numel() for name in components for p in getattr(pipeline, name).parameters())
    packed = sum(math.prod(plan.shape) for plan in quantized)
    needs_moments = METHODS[recipe.method].calibrated or recipe.shares_budget
    shapes = [matrix_shape(plan.shape) for plan in quantized]
    columns = [shape[1] for shape in shapes] if needs_moments else []
    moments = [4 * side**2 for side in columns]
    outputs = [4 * shape[0] ** 2 for shape in shapes] if recipe.output_feedback else []
    budget = recipe.calibration.memory_budget_gb * 1e9
    sampling = recipe.calibration.sampling.resolve(architecture.defaults)
    encode_seconds = packed * _seconds_per_weight(recipe)
    recording = min(max(sum(moments), sum(outputs)), budget)
    encoding = max((encoding_bytes(*shape, shape[1] if columns else 0, bool(outputs)) for shape in shapes), default=0)
    peak = int(_model_bytes(pipeline) + max(recording, encoding))
    denoiser = architecture.denoiser
    call = Call(
        weights=sum(p.numel() for p in getattr(pipeline, denoiser).parameters()),
        samples=samples_of_a_call(pipeline, denoiser, sampling),
    )
    passes = math.ceil(sum(moments) / budget) + math.ceil(sum(outputs) / budget)
    work = Work.of(recipe, sampling, call, columns, passes, encode_seconds)
    dtype = placement.opening_dtype or torch.bfloat16
    numbers = sum(p.numel() for network in networks(pipeline).values() for p in network.parameters())
    disk = sum(moments) + sum(outputs) + 2 * _bytes_after(weights, packed, recipe, recipe.bits)
    needs = Needs(0 if placement.on_host else dtype.itemsize * numbers + 2 * max(moments, default=0), peak, disk)
    return {
        "model": model,
        "method": recipe.method,
        "bits": recipe.bits,
        "finetune": recipe.finetune,
        "parts": "pipeline" if planned.whole else "denoiser",
        "obstacle": planned.obstacle,
        "components": list(components),
        "quantized_layers": len(quantized),
        "kept_layers": len(plans) - len(quantized),
        "kept": {plan.name: plan.reason for plan in plans if plan.reason is not None},
        "quantized_weights": packed,
        "weights": weights,
        "bytes_before": 2 * weights,
        "bytes_after": _bytes_after(weights, packed, recipe, recipe.bits),
        "bytes_by_bits": {f"{bits:g}": _bytes_after(weights, packed, recipe, bits) for bits in WIDTHS},
        "prompts": recipe.calibration.count if needs_moments else 0,
        "sampling": {name: value for name, value in asdict(sampling).items() if name != "inputs"},
        "order": recipe.calibration.order,
        "call_bytes": recipe.training.budget_gb * 1e9 if recipe.calibration.order == "sequential" else 0,
        "passes": passes,
        "moment_bytes": sum(moments) + sum(outputs),
        "peak_memory_bytes": peak,
        "narrow_saves_bytes": _narrow_saves(architecture, pipeline, recipe),
        "encode_seconds": encode_seconds,
        "forecast": forecast(placement, work, needs, free_bytes(Path.cwd()), dtype),
    }


def _counted(recipe: Recipe, architecture: Architecture) -> Recipe:
    """``recipe`` with the number of prompts that a run would take. A set on the Hub is not fetched for that."""
    source = recipe.calibration.prompts or architecture.prompt_set
    if source.startswith(HUB):
        return recipe
    prompts = load_prompts(source)
    recipe = fitted_count(recipe, prompts)
    count = min(recipe.calibration.count, len(prompts.prompts))
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"count": count})})


def _planned(model: str, recipe: Recipe) -> Skeleton:
    if recipe.base is None and (known := known_name(model)):
        found = published_skeleton(known)
        if found.whole or set(recipe.components) <= set(found.architecture.denoisers):
            return found
    pipeline = open_pipeline(model, base=recipe.base)
    return Skeleton(architecture_of(pipeline), pipeline, whole=True)


def _bytes_after(weights: int, packed: int, recipe: Recipe, bits: float) -> int:
    return int(2 * (weights - packed) + packed * _stored_bits(recipe, bits) / 8)


def _stored_bits(recipe: Recipe, bits: float) -> float:
    """Bits per weight on disk. For scalar codes, scale and zero are added to the width."""
    if not METHODS[recipe.method].whole_bits:
        return bits
    settings = settings_for(recipe.method, recipe.settings)
    return bits + (getattr(settings, "scale_bits", FLOAT_SCALES) + bits) / getattr(settings, "group_size", 64)


def _model_bytes(pipeline: Any) -> int:
    return sum(p.nbytes for network in networks(pipeline).values() for p in network.parameters())


def _narrow_saves(architecture: Architecture, pipeline: Any, recipe: Recipe) -> int:
    """How much less memory a run takes whose denoisers are stored in 16 bits: without fine-tuning they stay so."""
    if recipe.finetune != "none":
        return 0
    weights = (p for part in architecture.denoisers for p in architecture.module(pipeline, part).parameters())
    return sum(p.numel() * (p.element_size() - 2) for p in weights)


def _seconds_per_weight(recipe: Recipe) -> float:
    """Encoding time per weight of one core, measured on this machine after one call for compilation.

    Time of the processor, on one thread as in a run: what else the machine does at this moment is not in it.
    """
    weight = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(recipe.seed))
    settings = settings_for(recipe.method, recipe.settings)
    outputs = torch.eye(SAMPLE[0]) if recipe.output_feedback else None
    taken = 0.0
    with one_thread_each():
        for _ in range(2):
            start = time.process_time()
            quantize_weight(
                weight, torch.eye(SAMPLE[1]), method=recipe.method, bits=recipe.bits, settings=settings,
                output_moment=outputs,
            )  # fmt: skip
            taken = time.process_time() - start
    return taken / weight.numel()
