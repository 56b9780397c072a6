"""Threads share memory: never more than the budget at once, and what is too large runs alone."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vqcompress.working_memory import WorkingMemory, usable_cores


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
