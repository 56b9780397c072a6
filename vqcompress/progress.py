"""How long work reports how far it has come."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

_log = logging.getLogger("vqcompress")

Progress = Callable[[str, int, int, str], None]
"""``(stage, done, total, detail)``: of a run, which has several stages."""

StageProgress = Callable[[int, int, str], None]
"""``(done, total, detail)``: of one stage."""


class EncodedLayer(str):
    """The detail of a step that encoded a layer: what it came to in words, and the numbers for who adds them up.

    ``bits`` per weight, everything stored counted, and ``error`` relative to the layer's output; both ``None`` where
    the layer stays dense. ``seconds`` of encoding.
    """

    layer: str
    bits: float | None
    error: float | None
    seconds: float

    def __new__(
        cls, layer: str, said: str, bits: float | None = None, error: float | None = None, seconds: float = 0.0
    ) -> EncodedLayer:
        detail = super().__new__(cls, f"{layer}: {said}")
        detail.layer, detail.bits, detail.error, detail.seconds = layer, bits, error, seconds
        return detail


def silent(stage: str, done: int, total: int, detail: str) -> None:
    """A `Progress` that reports to nobody."""


def silent_stage(done: int, total: int, detail: str) -> None:
    """A `StageProgress` that reports to nobody."""


@contextmanager
def one_step(progress: Progress, stage: str, detail: str) -> Iterator[None]:
    """Tell ``progress`` of a stage of one step, when it begins and when it is done."""
    progress(stage, 0, 1, detail)
    yield
    progress(stage, 1, 1, detail)


def in_terminal_or_notebook() -> bool:
    """Whether somebody watches: standard error is a terminal, or a notebook's kernel runs this."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this process; ipykernel is also imported by programs that start one."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def watched(progress: Progress | bool | None) -> StageClock:
    """``progress`` itself; bars for True, nothing for False, and for None bars in a terminal or a notebook. Stages are
    timed, and told to the logger ``vqcompress``."""
    if progress is None:
        progress = in_terminal_or_notebook()
    if isinstance(progress, bool):
        return StageClock(StageBars() if progress else silent)
    return StageClock(progress)


class StageClock:
    """A `Progress` that times stages, logs each at its beginning and end, and reports to another.

    ``seconds`` maps a stage to the time between its steps and the step before each, whichever stage that was of.
    """

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress, self._last = progress, monotonic()

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        now = monotonic()
        if stage not in self.seconds:
            _log.info("%s: %d to do", stage, total)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        if done == total:
            _log.info("%s: %d done in %.1f s", stage, done, self.seconds[stage])
        self._progress(stage, done, total, detail)


class StageBars:
    """A `Progress` that draws a bar for each stage, as the rest of the field does (tqdm, in notebooks as well)."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        from tqdm.auto import tqdm

        bar = self._bars.get(stage)
        if bar is None or done < bar.n:  # a stage may begin again, as for each folder of a report
            if bar is not None:
                bar.close()
            bar = self._bars[stage] = tqdm(total=total, initial=max(done - 1, 0), desc=stage, dynamic_ncols=True)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
