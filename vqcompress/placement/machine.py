"""What devices this machine has, and their memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from vqcompress.working_memory import usable_cores

ACCELERATORS = ("cuda", "xpu", "mps")  # in the order in which "auto" looks for them


@dataclass(frozen=True)
class DeviceMemory:
    """A device's name and bytes."""

    name: str
    total: int
    free: int


def device_memory(device: torch.device) -> DeviceMemory:
    """What ``device`` is called, how much memory it has, and how much of that is free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(torch.cuda.get_device_name(device), total, free)
    if device.type == "xpu":
        found = torch.xpu.get_device_properties(device)
        return DeviceMemory(found.name, found.total_memory, found.total_memory - torch.xpu.memory_reserved(device))
    total, free = host_memory()
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return DeviceMemory("Apple GPU", total, min(free, total - torch.mps.current_allocated_memory()))
    return DeviceMemory(f"{usable_cores()} cores", total, free)


def host_memory() -> tuple[int, int]:
    """Bytes of the machine, and those that programs can still have; 0 where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        total = _physical_bytes()
        return total, total
    found = {name: 1024 * int(count) for name, count in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such function, or no such name
        return 0


def first_accelerator() -> str | None:
    """The kind that "auto" takes; None on a machine without one."""
    return next((kind for kind in ACCELERATORS if not why_absent(kind)), None)


def device_count(kind: str) -> int:
    """Devices of ``kind``."""
    return getattr(torch, kind).device_count() if kind in ("cuda", "xpu") else 1


def why_absent(kind: str) -> str | None:
    """Why this machine has no device of ``kind``; None where it has one."""
    if kind == "cpu":
        return None
    if kind == "mps":
        return None if torch.backends.mps.is_available() else "this torch finds no Apple GPU"
    if getattr(torch, kind).is_available() and device_count(kind):
        return None
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return f"torch finds no {kind} device on this machine"
