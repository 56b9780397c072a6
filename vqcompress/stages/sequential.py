"""Encode the denoiser block by block, each for the inputs that the blocks encoded before it give it (VQDM, section 4).

One-pass recording gives every layer the inputs that it gets in the original. Here the original's calls are recorded
once, and every block gets what the denoiser, compressed so far, makes of them. For each block that costs a run of half
the denoiser on average.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from vqcompress.calibration.record import Component, record_inputs
from vqcompress.denoiser_calls.blocks import execution_order, find_blocks
from vqcompress.denoiser_calls.dataset import DistillationDataset, record
from vqcompress.denoiser_calls.partial_run import run_through_block, weight_sharing_copy
from vqcompress.layers import swap
from vqcompress.placement import execution_device
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.stages.encoding import encode_all, encoded_layers
from vqcompress.stages.recording import keep_recorded, recorded_groups
from vqcompress.stages.run import Run

CALLS = "calls"
MOMENTS = "moments-in-order"


@dataclass(frozen=True)
class Replay:
    """Recorded calls, run through ``denoiser`` as far as ``block``; a batch is one recorded call."""

    denoiser: nn.Module
    block: str
    calls: DistillationDataset
    indices: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, denoiser: nn.Module, block: str, calls: DistillationDataset) -> Replay:
        """All of ``calls``."""
        numbered = enumerate(calls.samples)
        together = groupby(numbered, key=lambda item: (item[1].shard, item[1].call))
        return cls(denoiser, block, calls, tuple(tuple(index for index, _ in members) for _, members in together))

    @property
    def batches(self) -> int:
        """Recorded calls."""
        return len(self.indices)

    @property
    def repeats(self) -> float:
        """`probe` is the first of them."""
        return float(len(self.indices))

    def probe(self) -> None:
        """Run the first call."""
        self.batch(0)

    @torch.no_grad()
    def batch(self, index: int) -> None:
        """Run one call."""
        device = execution_device(self.denoiser)
        run_through_block(self.block, self.denoiser, self.calls.batch(self.indices[index], device).kwargs)


def encode_in_order(
    run: Run, component: str, layers: list[str], bits: dict[str, float], codebooks: Tensor | None
) -> tuple[Run, dict[str, str], dict[str, QuantizedWeight]]:
    """Encode ``layers`` of the denoiser ``component`` block by block; the dense denoiser is left as it is.

    Returns the run with the moments that the layers were encoded for, the group of each layer in it, and the codes.
    Layers that no call reaches are encoded for white inputs.
    """
    student = weight_sharing_copy(run.component(component))
    calls = _recorded_calls(run, component)
    blocks = find_blocks(student, layers, finest=True)
    order = execution_order(student, list(blocks), lambda: _whole_call(student, calls))
    groups: dict[str, str] = {}
    quantized: dict[str, QuantizedWeight] = {}
    for index, name in enumerate(order):
        in_order = _run_in_order(run, len(quantized), len(layers))
        members = blocks[name]
        recorded = recorded_groups(in_order, component)
        if not (encoded_layers(run, component).issuperset(members) and recorded.keys() >= set(members)):
            _record_block(in_order, component, Replay.of(student, name, calls), members, index, len(order))
        found = recorded_groups(in_order, component)
        groups |= {layer: found[layer] for layer in members}
        codes = encode_all(in_order, component, members, bits, groups, codebooks)
        swap(student, codes)
        quantized |= codes
        _forget_tensors(in_order, component, {groups[layer] for layer in members})
    left = [layer for layer in layers if layer not in quantized]
    in_order = _run_in_order(run, len(quantized), len(layers))
    return in_order, groups, quantized | encode_all(in_order, component, left, bits, {}, codebooks)


def _recorded_calls(run: Run, component: str) -> DistillationDataset:
    """The original's calls on the calibration prompts, on disk within the budget for recordings."""
    return record(
        run.calibration_run(component=component),
        run.recordings,
        CALLS if component == run.architecture.denoiser else f"{component}.{CALLS}",
        budget=int(run.recipe.training.budget_gb * 1e9),
        progress=lambda done, total, what: run.progress("record calls", done, total, what),
    )


@torch.no_grad()
def _whole_call(denoiser: nn.Module, calls: DistillationDataset) -> None:
    denoiser(**calls.batch([0], execution_device(denoiser)).kwargs)


def _run_in_order(run: Run, done: int, total: int) -> Run:
    """The run with moments of its own, for they depend on its codes, and with progress over all layers."""

    def report(stage: str, part: int, of: int, detail: str) -> None:
        run.progress(stage, *((done + part, total) if stage.startswith("encode") else (part, of)), detail)

    return replace(run, recordings=run.store, moments=MOMENTS, progress=report)


def _record_block(in_order: Run, component: str, replay: Replay, layers: list[str], index: int, of: int) -> None:
    """Record the inputs of the layers of block ``index``."""

    def report(done: int, total: int, what: str) -> None:
        in_order.progress(f"calibrate {component}", index * total + done, of * total, replay.block)

    watched = Component(in_order.architecture, component, replay.denoiser)
    recorded = record_inputs(watched, layers, replay, in_order.recipe.seed, in_order.recording_limits(), report)
    keep_recorded(in_order, component, recorded)


def _forget_tensors(in_order: Run, component: str, keys: Iterable[str]) -> None:
    """Free the disk: the codes are there, and all moments together would take tens of gigabytes."""
    for key in keys:
        in_order.store.discard_tensors(in_order.moments_of(component), key)


def encodes_in_order(run: Run, component: str) -> bool:
    """Whether the recipe asks for it: text encoders are shallow, and have no trajectory to replay."""
    return run.recipe.calibration.order == "sequential" and component in run.architecture.denoisers
