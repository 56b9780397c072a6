"""What the stages of one compression run share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from vqcompress.architectures import Architecture
from vqcompress.calibration.prompts import PromptSet, choose_diverse
from vqcompress.calibration.record import RecordingLimits
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.disk import free_bytes
from vqcompress.finetuning import DistillationData
from vqcompress.placement import Placement
from vqcompress.progress import Progress
from vqcompress.recipe import Recipe, current_signature
from vqcompress.run_signature import StageInputs
from vqcompress.run_store import RunStore
from vqcompress.storage_dtype import narrowest_dtype
from vqcompress.workers import Workers
from vqcompress.working_memory import WorkingMemory

Made = TypeVar("Made")
FACTORING = 24  # of a second moment, in float32, and its factors, in float64


@dataclass(frozen=True)
class Run:
    """What the stages of one run share.

    ``layers`` maps a component to its layers to quantize; ``ignored`` to those that stay dense, and why. ``moments``
    names the recorded second moments that layers are encoded for. ``placement`` is where the pipeline computes; what
    comes from there to the host are recorded calls and moments, and what is encoded are weights on the host.
    """

    recipe: Recipe
    pipeline: DiffusionPipeline
    architecture: Architecture
    store: RunStore
    recordings: RunStore
    prompts: PromptSet
    progress: Progress
    layers: dict[str, list[str]]
    ignored: dict[str, dict[str, str]]
    workers: Workers
    placement: Placement = field(default_factory=Placement)
    distillation: DistillationData | None = None
    moments: str = "moments"

    def component(self, name: str) -> nn.Module:
        """A part of the pipeline by its name."""
        return getattr(self.pipeline, name)

    def moments_of(self, component: str) -> str:
        """The stage of ``recordings`` that has a component's moments."""
        return f"{component}.{self.moments}"

    def weight(self, component: str, layer: str) -> Tensor:
        """A layer's dense weight, on the host."""
        return self._parameter(component, layer).detach().cpu()

    def shape(self, component: str, layer: str) -> tuple[int, ...]:
        """That of a layer's dense weight."""
        return tuple(self._parameter(component, layer).shape)

    def dtype(self, component: str, layer: str) -> torch.dtype:
        """That of a layer's dense weight."""
        return self._parameter(component, layer).dtype

    def _parameter(self, component: str, layer: str) -> Tensor:
        return self.component(component).get_submodule(layer).weight

    def chosen_prompts(self, count: int) -> tuple[str, ...]:
        """The most diverse ``count`` calibration prompts."""
        return choose_diverse(self.prompts.prompts, count, self.recipe.seed)

    def calibration_run(self, count: int | None = None, component: str | None = None) -> SamplingRun:
        """The sampling that calibration records, on ``count`` prompts (None: as many as the recipe says).

        ``component`` is the denoiser whose calls are of interest (None: the architecture's first).
        """
        calibration = self.recipe.calibration
        prompts = self.chosen_prompts(count or calibration.count)
        return SamplingRun(
            self.pipeline, self.architecture, prompts, self.recipe.seed, calibration.sampling, calibration.batch_size,
            component=component,
        )  # fmt: skip

    def recording_limits(self) -> RecordingLimits:
        """The recipe's limits of recording."""
        calibration = self.recipe.calibration
        free = free_bytes(self.recordings.folder)
        return RecordingLimits(
            int(calibration.memory_budget_gb * 1e9), calibration.rows_per_call, free, self._free_on_device() // 2
        )

    def factoring_device(self, columns: int, height: int) -> torch.device:
        """Where a moment of ``columns``, stored as ``height`` lines of them, is factored: it and what is made of it
        take about `FACTORING` bytes a number."""
        device = self.placement.factors_on
        if device.type != "cpu" and FACTORING * columns * height > self._free_on_device() // 2:
            return torch.device("cpu")
        return device

    def factoring_room(self) -> WorkingMemory:
        """The device's memory for moments that are factored at once."""
        return WorkingMemory(self._free_on_device() // 2)

    def _free_on_device(self) -> int:
        return 0 if self.placement.on_host else self.placement.free_bytes()

    def main_process_first(self, make: Callable[[], Made]) -> Made:
        """What ``make`` finds or makes in a run folder: the first process makes it, the others find it."""
        if self.workers.is_main_process:
            made = make()
            self.workers.barrier()
            return made
        self.workers.barrier()
        return make()


@contextmanager
def open_store(
    folder: str | Path,
    signature: Mapping[str, Any] | Sequence[StageInputs],
    workers: Workers,
    source_note: Mapping[str, Any] | None = None,
) -> Iterator[RunStore]:
    """A run's folder, open in all processes of ``workers``; the first holds it for all, and keeps ``source_note`` in
    it. A run of an older version is not refused for its keys' former names; its results are made anew."""
    if not workers.is_main_process:
        workers.barrier()
    with RunStore(folder, signature, joins=not workers.is_main_process, current=current_signature) as store:
        if workers.is_main_process:
            if source_note:
                store.put_source_note(source_note)
            workers.barrier()
        yield store


def dense_bits(weight: Tensor) -> int:
    """Bits that each weight of a dense layer takes in the saved folder."""
    return 8 * narrowest_dtype([weight]).itemsize
