"""Where a pipeline computes: the device, the dtype, and what of it waits on the host meanwhile."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from vqcompress.errors import RecipeError
from vqcompress.placement.machine import device_count, device_memory, first_accelerator, why_absent

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Offload = Literal["auto", "none", "model", "group", "sequential"]
DTYPES: tuple[str, ...] = get_args(DtypeName)
OFFLOADS: tuple[str, ...] = get_args(Offload)

DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(?::(\d+))?")
WAITING = {
    "model": "each component is on the device while it runs",
    "group": "weights are streamed from the host block by block",
    "sequential": "weights are streamed from the host layer by layer",
}


@dataclass(frozen=True)
class Placement:
    """A device, the dtype that is computed in, and how weights get to the device.

    ``dtype`` None is "auto": float32 on the CPU, and elsewhere the 16 bits that the checkpoint is stored in, or
    float32. ``offload`` says which weights are on the device: all ("none"), those of the component that runs ("model"),
    of the block that runs ("group"), of the layer that runs ("sequential"); "auto" is the first of "none", "model" and
    "group" that fits its free memory (`offloading.place` decides). ``memory`` are bytes of the device to get along
    with; None: those that are free.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    offload: Offload = "auto"
    memory: int | None = None

    @classmethod
    def parse(
        cls,
        device: str | torch.device | Placement | None = "auto",
        dtype: str | torch.dtype | None = "auto",
        offload: str | None = "auto",
    ) -> Placement:
        """What a user asked for; None is "auto", and a `Placement` as the device says all three. Raises `RecipeError`
        for what this machine does not have."""
        if isinstance(device, Placement):
            return device
        found, kind = _device(str(device or "auto")), _offload(offload or "auto")
        if found.type == "cpu" and kind in WAITING:
            raise RecipeError(
                f"offload {kind!r} keeps weights on the host while a device computes, and this run computes on the "
                "host (cpu); leave it out, or name an accelerator as the device"
            )
        return cls(found, _dtype(dtype), kind)

    @classmethod
    def of(cls, network: nn.Module) -> Placement:
        """Where ``network`` is: for a pipeline that a caller has placed."""
        return cls(next(network.parameters()).device, None, "none")

    @property
    def on_host(self) -> bool:
        """Whether the CPU computes."""
        return self.device.type == "cpu"

    @property
    def factors_on(self) -> torch.device:
        """Where second moments are factored, in float64, which not all accelerators have."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @property
    def opening_dtype(self) -> torch.dtype | None:
        """The dtype to open a checkpoint in; None for the one that it is stored in."""
        return torch.float32 if self.dtype is None and self.on_host else self.dtype

    def free_bytes(self) -> int:
        """Of the device's memory."""
        return device_memory(self.device).free if self.memory is None else self.memory

    def sentence(self) -> str:
        """``cuda:0 (NVIDIA H200, 141 GB), the checkpoint's dtype``, and what stays on the host where that is known."""
        memory, dtype = device_memory(self.device), self.opening_dtype
        kind = "the checkpoint's dtype" if dtype is None else str(dtype).removeprefix("torch.")
        waiting = f"; {WAITING[self.offload]}" if self.offload in WAITING else ""
        return f"{self.device} ({memory.name}, {memory.total / 1e9:.3g} GB), {kind}{waiting}"


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    plain = str(name or "auto").removeprefix("torch.")
    if plain not in DTYPES:
        raise RecipeError(f"dtype {plain!r} is not one of {', '.join(DTYPES)}")
    return None if plain == "auto" else getattr(torch, plain)


def _offload(name: str) -> Offload:
    if name not in OFFLOADS:
        raise RecipeError(f"offload {name!r} is not one of {', '.join(OFFLOADS)}")
    return name  # type: ignore[return-value]


def _device(name: str) -> torch.device:
    if name == "auto":
        return _numbered(torch.device(first_accelerator() or "cpu"))
    match = DEVICE.fullmatch(name)
    if match is None:
        raise RecipeError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:N, mps or xpu")
    kind, number = match[1], int(match[2] or 0)
    if problem := why_absent(kind):
        raise RecipeError(f"device {name!r} is not here: {problem}; 'auto' takes what there is")
    if number >= device_count(kind):
        count = device_count(kind)
        raise RecipeError(f"device {name!r} is not here: this machine has {count} of {kind}, counted from {kind}:0")
    return _numbered(torch.device(name))


def _numbered(device: torch.device) -> torch.device:
    """``device`` with a number: under torchrun each process of a machine takes another."""
    if device.type not in ("cuda", "xpu") or device.index is not None:
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")) % device_count(device.type))
