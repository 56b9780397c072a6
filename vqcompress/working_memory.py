"""How many layers are encoded at once: one a core, within a memory budget; and equal shares for processes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Condition

import torch


def usable_cores() -> int:
    """Cores that this process may run on, which containers and `taskset` make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch's own threads off while layers are spread over cores; it also keeps sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps blocks below 32 MB, fragmented, in an arena for each thread.

    Over the 771 layers of SDXL's UNet they came to 8 GB. With other allocators this does nothing.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


class WorkingMemory:
    """``budget`` bytes that threads share; what needs more than all of it runs alone."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0
        self._changed = Condition()

    @contextmanager
    def holding(self, needed: int) -> Iterator[None]:
        """Wait until ``needed`` bytes are free, and hold them inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + needed <= self._budget)
            self._held += needed
        try:
            yield
        finally:
            with self._changed:
                self._held -= needed
                self._changed.notify_all()


def balanced(costs: Sequence[float], shares: int) -> list[int]:
    """Which of ``shares`` takes each item: the most expensive first, always to the share that has least so far.

    At most a third above the best possible (Graham 1969). The same costs give the same answer in every process.
    """
    load, taken = [0.0] * shares, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        taken[index] = min(range(shares), key=load.__getitem__)
        load[taken[index]] += costs[index]
    return taken
