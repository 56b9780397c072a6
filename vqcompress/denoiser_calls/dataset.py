"""The teacher's calls on disk: recorded once within a budget, read back unit by unit, no teacher needed after that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqcompress.denoiser_calls.call_tensors import flatten, join, nest, spread_timestep, take_units
from vqcompress.denoiser_calls.record import TeacherCall, record_teacher, trajectory_length
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.progress import StageProgress
from vqcompress.run_store import RunStore, read_json, unreadable
from vqcompress.tensor_tree import to_device

KEPT = "calls"  # of each batch, as many as the budget has room for


@dataclass(frozen=True)
class Batch:
    """Some units as one denoiser call: ``denoiser(**kwargs)`` should give ``target``; ``weights [units]`` for the
    loss."""

    kwargs: dict[str, Any]
    target: Tensor
    branches: int
    weights: Tensor


@dataclass(frozen=True)
class Unit:
    """Where a unit lies: prompt ``row`` of call ``call`` of shard ``shard``, and its timestep."""

    shard: str
    call: int
    row: int
    timestep: float


@dataclass(frozen=True)
class DistillationDataset:
    """Units in a folder of shards, in a fixed order. Reads only; any number of processes may."""

    folder: Path
    units: tuple[Unit, ...]
    weights: Tensor
    _open: dict[str, _Shard] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, store: RunStore, stage: str) -> DistillationDataset:
        """All shards of ``stage``."""
        return cls.at(store.folder, stage)

    @classmethod
    def at(cls, run_folder: Path, stage: str) -> DistillationDataset:
        """The same from the run's folder alone, for processes that do not hold its lock."""
        folder = run_folder / stage
        units: list[Unit] = []
        for path in sorted(folder.glob("*.json")):
            form = read_json(path)
            for call, timestep in enumerate(form["timesteps"]):
                units += [Unit(path.stem, call, row, timestep) for row in range(form["prompts"])]
        return cls(folder, tuple(units), torch.ones(len(units)))

    def __len__(self) -> int:
        return len(self.units)

    @property
    def timesteps(self) -> Tensor:
        """Of every unit, float32 ``[units]``."""
        return torch.tensor([unit.timestep for unit in self.units])

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The units with these indices, as one call."""
        order: dict[tuple[str, int], list[int]] = {}
        for index in indices:
            order.setdefault((self.units[index].shard, self.units[index].call), []).append(index)
        parts, targets, rows, branches = [], [], [], 1
        for (shard, call), members in order.items():
            flat, target, prompts = self._shard(shard).call(call)
            branches = len(target) // prompts
            picked = [self.units[index].row for index in members]
            taken = take_units({**flat, "": target}, picked, prompts, len(target))
            targets.append({"": taken.pop("")})
            parts.append(taken)
            rows.append(branches * len(picked))
        kwargs = nest(join(parts, rows, branches))
        weights = self.weights[[index for members in order.values() for index in members]]
        return Batch(
            to_device(kwargs, device),
            to_device(join(targets, rows, branches)[""], device),
            branches,
            weights.to(device),
        )

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
        if not _is_stored(store, stage, key) or (index == 0 and KEPT not in store.done(_facts(stage))):
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
    return DistillationDataset.open(store, stage)


def _is_stored(store: RunStore, stage: str, key: str) -> bool:
    """Whether a shard is whole: its tensors and the JSON that describes them."""
    return all((store.folder / stage / (key + suffix)).exists() for suffix in (".safetensors", ".json"))


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
            f"the teacher's calls take {(once + each) / 1e6:.1f} MB for one step of a batch, {shards} batches do not fit in "
            f"{budget / 1e9:.3g} GB; raise the recording budget or train on fewer prompts"
        )
    return min(keep, len(calls))


def _store_shard(store: RunStore, stage: str, key: str, calls: Sequence[TeacherCall], prompts: int) -> None:
    tensors, plain = _packed(calls)
    store.put(stage, key, tensors)
    timesteps = [float(call["timestep"].flatten()[0].nan_to_num(0.0)) for call in calls]
    store.put_json(stage, key, {"prompts": prompts, "timesteps": timesteps, "plain": plain})


def _packed(calls: Sequence[TeacherCall]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under ``same:path`` (equal in all calls) or ``each:path`` (one more dimension in front), and what is no
    tensor."""
    rows = len(calls[0]["output"])
    flats = [{**spread_timestep(flatten(call["kwargs"]), rows), "": call["output"]} for call in calls]
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
