"""Threads share memory: never more than the budget at once, and what is too large runs alone."""

from __future__ import annotations

import os
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vqcompress.working_memory import WorkingMemory, is_out_of_memory, return_freed_memory, usable_cores


def test_memory_that_a_library_reports_as_an_error_of_a_file():
    reported = OSError("unable to load weights from checkpoint file")
    reported.__context__ = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert is_out_of_memory(reported)
    assert not is_out_of_memory(OSError("no such file"))
    loading = OSError("could not load libllvmlite.so")
    loading.__context__ = OSError("libllvmlite.so: failed to map segment from shared object")
    assert is_out_of_memory(loading)
    assert not is_out_of_memory(OSError("a.so: failed to map segment from shared object: Operation not permitted"))
    assert not is_out_of_memory(ValueError("not enough memory of the past"))


def test_no_more_than_the_budget_at_once():
    room, lock = WorkingMemory(10), threading.Lock()
    held: list[int] = []
    seen: list[list[int]] = []

    def work(needed: int) -> None:
        with room.holding(needed):
            with lock:
                held.append(needed)
                seen.append(list(held))
            time.sleep(0.002)
            with lock:
                held.remove(needed)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [3, 6, 25, 4, 10, 2, 5] * 4))
    assert all(sum(now) <= 10 or now == [25] for now in seen)
    assert max(len(now) for now in seen) > 1


def test_an_error_gives_the_memory_back():
    room = WorkingMemory(1)
    with pytest.raises(ZeroDivisionError), room.holding(1):
        _ = 1 // 0
    with room.holding(1):
        pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep nothing, or cannot be asked")
def test_freed_blocks_between_kept_ones_go_back_to_the_system():
    kept, freed = [], []
    for _ in range(4000):
        freed.append(np.ones(1 << 14))  # 128 KB: of the heap, once larger ones have been freed
        kept.append(np.ones(16))
    full = anonymous_bytes()
    freed.clear()
    return_freed_memory()
    assert full - anonymous_bytes() > 300e6


def anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))
