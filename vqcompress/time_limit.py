"""A limit of wall-clock time for looking through files that a stranger may have made as long as they like."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vqcompress.errors import CheckpointError

_ENDS: ContextVar[tuple[float, float]] = ContextVar("time limit", default=(float("inf"), float("inf")))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Make `check_time` raise inside of this block once it has lasted ``seconds``. The time runs as the clock does."""
    token = _ENDS.set((time.monotonic() + seconds, seconds))
    try:
        yield
    finally:
        _ENDS.reset(token)


def check_time() -> None:
    """Raise `CheckpointError` where the time of the innermost `within` is over. Cheap enough for each block read."""
    end, seconds = _ENDS.get()
    if time.monotonic() > end:
        raise CheckpointError(
            f"not looked through within {seconds:.0f} s; allow more seconds if its files are as large as they should be"
        )
