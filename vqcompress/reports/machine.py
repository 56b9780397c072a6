"""The machine that a comparison ran on, in words, and the memory that weights take on it."""

from __future__ import annotations

import platform
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from vqcompress.working_memory import usable_cores


def machine(device: torch.device | str = "cpu") -> str:
    """Processor and cores, and the accelerator where ``device`` is one; no name of the host."""
    threads = torch.get_num_threads()
    parts = [f"{processor()}, {usable_cores()} cores", "1 thread" if threads == 1 else f"{threads} threads"]
    if torch.device(device).type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def processor() -> str:
    """The processor's name as the system gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join(next(names, "").split()) or platform.processor() or platform.machine()


def weight_memory(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; those that layers share count once."""
    tensors = chain(module.parameters(), module.buffers())
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
