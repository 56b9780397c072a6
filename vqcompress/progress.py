"""How long work reports how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""``(stage, done, total, detail)``: of a run, which has several stages."""

StageProgress = Callable[[int, int, str], None]
"""``(done, total, detail)``: of one stage."""


def silent(stage: str, done: int, total: int, detail: str) -> None:
    """A `Progress` that reports to nobody."""


def silent_stage(done: int, total: int, detail: str) -> None:
    """A `StageProgress` that reports to nobody."""
