"""How many layers may be worked on at once: one a core, and no more than their memory allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


def usable_cores() -> int:
    """Cores that this process may run on, which containers and `taskset` make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
