"""A distillation dataset: the teacher's calls on disk, recorded once within a budget, read back sample by sample.

The teacher is not needed after recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqcompress.denoiser_calls.call_tensors import flatten, join, nest, spread_timestep, take_samples
from vqcompress.denoiser_calls.record import TeacherCall, record_teacher, trajectory_length
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.progress import StageProgress
from vqcompress.run_store import RunStore, read_json, unreadable
from vqcompress.tensor_tree import to_device

KEPT = "calls"  # of each batch, as many as the budget has room for


@dataclass(frozen=True)
class Batch:
    """Some samples as one denoiser call: ``denoiser(**kwargs)`` should return ``target``.

    ``target`` is ``[branches * samples, …]``, branch by branch; ``weights``, ``[samples]``, are for the loss.
    """

    kwargs: dict[str, Any]
    target: Tensor
    branches: int
    weights: Tensor


@dataclass(frozen=True)
class Sample:
    """Where a sample lies: the prompt with index ``prompt`` in call ``call`` of shard ``shard``, and its timestep."""

    shard: str
    call: int
    prompt: int
    timestep: float


@dataclass(frozen=True)
class DistillationDataset:
    """Samples in a folder of shards, in a fixed order. Reads only; any number of processes may."""

    folder: Path
    samples: tuple[Sample, ...]
    weights: Tensor
    _open: dict[str, _Shard] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, run_folder: Path, stage: str) -> DistillationDataset:
        """All shards of ``stage`` in a run's folder; its lock is not needed."""
        samples: list[Sample] = []
        for path in sorted((run_folder / stage).glob("*.json")):
            form = read_json(path)
            for call, timestep in enumerate(form["timesteps"]):
                samples += [Sample(path.stem, call, prompt, timestep) for prompt in range(form["prompts"])]
        return cls(run_folder / stage, tuple(samples), torch.ones(len(samples)))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def timesteps(self) -> Tensor:
        """Of every sample, float32 ``[samples]``."""
        return torch.tensor([sample.timestep for sample in self.samples])

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The samples with these indices, as one call. Those of one recorded call come together."""
        order: dict[tuple[str, int], list[int]] = {}
        for index in indices:
            order.setdefault((self.samples[index].shard, self.samples[index].call), []).append(index)
        parts, targets, sizes, branches = [], [], [], 1
        for (shard, call), members in order.items():
            flat, target, prompts = self._shard(shard).call(call)
            branches = len(target) // prompts
            chosen = [self.samples[index].prompt for index in members]
            taken = take_samples({**flat, "": target}, chosen, prompts, len(target))
            targets.append({"": taken.pop("")})
            parts.append(taken)
            sizes.append(branches * len(chosen))
        kwargs, target = nest(join(parts, sizes, branches)), join(targets, sizes, branches)[""]
        weights = self.weights[[index for members in order.values() for index in members]]
        return Batch(to_device(kwargs, device), target.to(device), branches, weights.to(device))

    def _shard(self, name: str) -> _Shard:
        if name not in self._open:
            self._open[name] = _Shard(self.folder / name)
        return self._open[name]


def record(
    run: SamplingRun,
    store: RunStore,
    stage: str,
    *,
    budget: int,
    calls_per_batch: int | None = None,
    progress: StageProgress | None = None,
) -> DistillationDataset:
    """Sample the teacher as ``run`` says and keep its denoiser calls under ``stage`` in at most ``budget`` bytes.

    Of every batch, which becomes a shard, ``calls_per_batch`` calls are kept (None: all), spread over the trajectory;
    the budget makes them fewer. A recording that was stopped goes on. Raises `CalibrationError` when the budget has no
    room for one call of each batch.
    """
    length = store.load_or_make_json(_facts(stage), "length", lambda: trajectory_length(run))
    keep = min(length, calls_per_batch or length)
    for index in range(run.batches):
        key, first = f"{index:05d}", index * run.batch_size
        shard = replace(run, prompts=run.prompts[first : first + run.batch_size], seed=run.seed + first)
        if not store.has_pair(stage, stage, key) or (index == 0 and KEPT not in store.done(_facts(stage))):
            calls = record_teacher(shard, count=keep, trajectory=length)
            if index == 0:
                keep = _within_budget(calls, run.batches, budget)
                calls = calls[:: -(-len(calls) // keep)]
                store.put_json(_facts(stage), KEPT, keep)
            _store_shard(store, stage, key, calls[:keep], len(shard.prompts))
        elif index == 0:
            keep = store.load_json(_facts(stage), KEPT)
        if progress:
            progress(index + 1, run.batches, f"{keep} of {length} calls a batch")
    return DistillationDataset.open(store.folder, stage)


def _facts(stage: str) -> str:
    """What all shards of a dataset share."""
    return f"{stage}.trajectory"


def _within_budget(calls: Sequence[TeacherCall], shards: int, budget: int) -> int:
    """How many calls of every batch fit. What is the same in all calls of a batch is stored once."""
    tensors, _ = _packed(calls)
    once = sum(t.nbytes for name, t in tensors.items() if name.startswith("same:"))
    each = sum(t.nbytes for name, t in tensors.items() if not name.startswith("same:")) / len(calls)
    keep = int((budget / shards - once) / each)
    if keep < 1:
        raise CalibrationError(
            f"the teacher's calls take {(once + each) / 1e6:.1f} MB for one step of a batch, {shards} batches do not "
            f"fit in {budget / 1e9:.3g} GB; raise the recording budget or train on fewer prompts"
        )
    return min(keep, len(calls))


def _store_shard(store: RunStore, stage: str, key: str, calls: Sequence[TeacherCall], prompts: int) -> None:
    tensors, plain = _packed(calls)
    store.put(stage, key, tensors)
    timesteps = [float(call["timestep"].flatten()[0].nan_to_num(0.0)) for call in calls]
    store.put_json(stage, key, {"prompts": prompts, "timesteps": timesteps, "plain": plain})


def _packed(calls: Sequence[TeacherCall]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under ``same:path`` (equal in all calls) or ``each:path`` (stacked over calls), and what is no tensor."""
    batch_size = len(calls[0]["output"])
    flats = [{**spread_timestep(flatten(call["kwargs"]), batch_size), "": call["output"]} for call in calls]
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, first in flats[0].items():
        values = [flat[name] for flat in flats]
        if not isinstance(first, Tensor):
            plain[name] = first
        elif name and all(torch.equal(value, first) for value in values):
            tensors[f"same:{name}"] = first
        else:
            tensors[f"each:{name}"] = torch.stack(values)
    return tensors, plain


class _Shard:
    """One shard's file, kept open, for it is mapped and not read as a whole."""

    def __init__(self, path: Path) -> None:
        form, tensors = read_json(path.with_suffix(".json")), path.with_suffix(".safetensors")
        self.prompts, self.plain = form["prompts"], form["plain"]
        try:
            self.file = safe_open(tensors, framework="pt")
        except (SafetensorError, OSError) as error:
            raise unreadable(tensors, error) from error
        self.names = list(self.file.keys())

    def call(self, index: int) -> tuple[dict[str, Any], Tensor, int]:
        """Flat arguments, output and number of prompts of a call."""
        flat: dict[str, Any] = dict(self.plain)
        for name in self.names:
            kind, _, path = name.partition(":")
            flat[path] = self.file.get_tensor(name) if kind == "same" else self.file.get_slice(name)[index]
        return flat, flat.pop(""), self.prompts
