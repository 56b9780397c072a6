"""Loops in parallel, on the threads that torch keeps for its own operators, which spin for a while before they sleep.

Waking them takes microseconds; a thread of Python's sleeps at once, wakes in tenths of a millisecond and needs the
interpreter's lock to begin. (numba's own parallel loops keep a second pool that spins against torch's.)
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

# So many weights are worth waking a thread for: torch's own measure.
WEIGHTS_PER_THREAD = 1 << 15


def parallel_for(loop: Any, count: int, weights: int, *arguments: int) -> None:
    """Run ``loop`` over ``0 … count``, cut into as many parts as torch may use threads and ``weights`` are worth.

    ``loop`` is a `vqcompress.kernels.cpu.loops.shared_loop`, and finds ``arguments`` as int64 numbers in sequence.
    """
    threads = torch.get_num_threads()
    parts = min(threads, weights // WEIGHTS_PER_THREAD, count)
    if parts <= 1:
        numbers = array("q", arguments)
        loop.ctypes(0, count, numbers.buffer_info()[0])
    else:
        numbers = array("q", (0, parts, count, loop.address, *arguments))
        _runner()(numbers.buffer_info()[0], threads)


@lru_cache(maxsize=1)
def _runner() -> Callable[[int, int], object]:
    """``(job, threads)``: runs `take_parts` of the loops in that many threads, this one included, and waits for all."""
    from vqcompress.kernels.cpu.loops import take_parts

    if (parallel := _openmp()) is not None:
        return lambda job, threads: parallel(take_parts.address, job, threads, 0)

    def run(job: int, threads: int) -> None:
        others = [_pool().submit(take_parts.ctypes, job) for _ in range(threads - 1)]
        take_parts.ctypes(job)
        for other in others:
            other.result()

    return run


def _openmp() -> Any:
    """``GOMP_parallel(function, argument, threads, flags)`` of the OpenMP runtime that torch is linked to, or ``None``.

    LLVM's and Intel's runtimes have it too.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if _forked or not torch.backends.openmp.is_available() or not library.exists():
        return None
    parallel = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vqcompress")


_forked = False


def _after_fork() -> None:
    """A child has none of its parent's threads, only the runners that would wait for them."""
    global _forked
    _forked = True
    _runner.cache_clear()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
