"""Threads that share a kernel's work and stay for the next one: starting them anew would cost as much as a small layer.

(numba's own parallel loops keep a pool that spins beside torch's, and do not survive a fork.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import torch

# Waking a thread costs about as much as decoding this many weights.
WEIGHTS_PER_THREAD = 1 << 17


def share(count: int, weights: int, work: Callable[[int, int], object]) -> None:
    """Call ``work(first, last)`` over ``0 … count``, cut into as many parts as torch may use threads and ``weights`` are worth.

    ``work`` must release the interpreter lock for it to help.
    """
    threads = min(torch.get_num_threads(), weights // WEIGHTS_PER_THREAD, count)
    if threads <= 1:
        work(0, count)
        return
    bounds = list(pairwise(count * thread // threads for thread in range(threads + 1)))
    others = [_pool().submit(work, *pair) for pair in bounds[1:]]
    work(*bounds[0])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vqcompress")


# A child has none of its parent's threads, only the pool that would wait for them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
