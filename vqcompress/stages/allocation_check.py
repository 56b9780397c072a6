"""Measure allocations of bits before anything is encoded, on prompts that calibration has not seen.

Noise takes the place of codes (`vqcompress.quantizers.coded_noise`): each layer gets an error of the size that its bits
will leave. All allocations get the same noise, only its sizes differ, so a few prompts tell them apart. What is
measured is what a report shows: how far final samples are from the original's, and the denoiser's error in single
calls. Unlike the importance of layers this is not of first order, and sees what guidance and trajectories make of
errors as large as these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from vqcompress.calibration.weight_errors import weight_errors
from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.record import TeacherCall, record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.disk import FileMemory
from vqcompress.metrics.denoiser_error import denoiser_error, energies_by_timestep
from vqcompress.placement import execution_device
from vqcompress.stages.importance import drawn_errors
from vqcompress.stages.run import Run
from vqcompress.tensor_tree import to_device

NARROW = 0.9  # least share of the mean in the allocation that is tried where a wider one is worse than none
PROMPTS, CALLS = 8, 8
LARGE = 1 << 30  # bytes of noise from which on it may leave the host's memory
SEEDS_FROM = 100_000  # initial noise that calibration does not start from


@dataclass(frozen=True)
class Allocation:
    """``bits`` of each layer, and what they are expected to leave of it: ``left`` is ``tr(E H Eᵀ)``."""

    name: str
    bits: dict[str, float]
    left: Mapping[str, float]


def best_allocation(run: Run, component: str, groups: dict[str, str], candidates: Sequence[Allocation]) -> Allocation:
    """The first of ``candidates`` that is no worse than the last, in images and in the denoiser's error.

    Only denoisers are measured; of other components the first is taken.
    """
    *preferred, last = candidates
    if component not in run.architecture.denoisers:
        return candidates[0]
    stage, total = f"allocate {component}", len(candidates)
    run.progress(stage, 0, total, "")
    bench = _Bench(run, component, groups, list(last.left))
    limit = bench.measured(last)
    run.progress(stage, 1, total, _shown(last, limit))
    for done, candidate in enumerate(preferred, 2):
        found = bench.measured(candidate)
        taken = found["distance"] <= limit["distance"] and found["error"] <= limit["error"]
        run.progress(stage, total if taken else done, total, _shown(candidate, found))
        if taken:
            return candidate
    return last


def _shown(allocation: Allocation, found: Mapping[str, float]) -> str:
    return f"{allocation.name}: images {-10 * found['distance']:.1f} dB, error {found['error']:.2g}"


@dataclass
class _Bench:
    """The original's images and calls, and the noise, made when the first allocation is measured."""

    run: Run
    component: str
    groups: dict[str, str]
    layers: list[str]

    def measured(self, allocation: Allocation) -> dict[str, float]:
        """``distance``: mean over prompts of the logarithm of the final sample's mean squared error, to base 10;
        ``error``: the denoiser's, relative. Kept in the run's folder."""
        return self.run.store.load_or_make_json(
            f"{self.component}.allocations", allocation.name, lambda: self._measure(allocation)
        )

    def _measure(self, allocation: Allocation) -> dict[str, float]:
        module, calls, originals = self.run.component(self.component), self._calls, self._originals
        noise, costs = self._drawn
        factors = {layer: (allocation.left[layer] / cost) ** 0.5 if cost else 0.0 for layer, cost in costs.items()}
        with weight_errors(module, noise, factors):
            lost = (self._finals() - originals).square().flatten(1).mean(1)
            energies = energies_by_timestep(
                (float(call["timestep"].flatten()[0]), self._output(call), call["output"]) for call in calls
            )
        distance = float(lost.clamp_min(1e-20).log10().mean())
        return {"distance": distance, "error": denoiser_error(energies)}

    @torch.no_grad()
    def _output(self, call: TeacherCall) -> Tensor:
        module = self.run.component(self.component)
        return first_output(module(**to_device(call["kwargs"], execution_device(module)))).cpu()

    def _finals(self) -> Tensor:
        return torch.cat(
            [torch.as_tensor(self._sampling.batch(i)).double().cpu() for i in range(self._sampling.batches)]
        )

    @cached_property
    def _sampling(self) -> SamplingRun:
        prompts, seen = self.run.prompts.prompts, set(self.run.chosen_prompts(self.run.recipe.calibration.count))
        fresh = tuple(prompt for prompt in dict.fromkeys(prompts) if prompt not in seen)[:PROMPTS]
        seed = self.run.recipe.seed + SEEDS_FROM
        return replace(
            self.run.calibration_run(component=self.component), prompts=fresh or prompts[:PROMPTS], seed=seed
        )

    @cached_property
    def _originals(self) -> Tensor:
        return self._finals()

    @cached_property
    def _calls(self) -> list[TeacherCall]:
        return record_teacher(self._sampling, count=CALLS)

    @cached_property
    def _drawn(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Errors of all layers at the reference's bits, in the dtype of the weights, and their costs.

        Independent of those that importance was found with: it would be held to be right about what it fits by chance.
        """
        noise, costs, run, component = {}, {}, self.run, self.component
        dtypes = {layer: run.dtype(component, layer) for layer in self.layers}
        sizes = (dtype.itemsize * prod(run.shape(component, layer)) for layer, dtype in dtypes.items())
        keep = self._keeper(sum(size + FileMemory.ALIGNMENT for size in sizes))
        for layer, errors, cost in drawn_errors(run, component, self.layers, self.groups, salt="check"):
            noise[layer], costs[layer] = keep(errors.to(dtypes[layer])), cost
        return noise, costs

    def _keeper(self, nbytes: int) -> Callable[[Tensor], Tensor]:
        """What puts noise where ``nbytes`` of it, as many as the weights have, find room: beside the weights on a
        device, or on the host, in memory or on its disk."""
        placement = self.run.placement
        if placement.offload == "none" and not placement.on_host and nbytes <= placement.free_bytes() // 2:
            return lambda errors: errors.to(placement.device)
        if nbytes >= LARGE:
            with suppress(OSError):  # no room on the disk
                return FileMemory(nbytes, self.run.store.folder).copy
        return lambda errors: errors.cpu()
