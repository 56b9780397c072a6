"""How long calls take the host, so that other processes do not matter: seconds of this thread, the least of many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

CALLS, ROUNDS = 25, 60


def least_seconds(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the thread that one call of each takes; they are measured in turn, a few at a time."""
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, math.inf)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(CALLS):
                call()
            best[name] = min(best[name], (time.thread_time() - start) / CALLS)
    return best
