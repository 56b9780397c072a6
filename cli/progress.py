"""Progress on stderr: a line for each stage that updates in a terminal, plain lines at intervals in a log."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column

from vqcompress.progress import EncodedLayer

WIDE = 100  # columns of a terminal from which there is room for a longer bar
LOG_SECONDS, LOG_SHARE = 30, 0.1  # a log gets a line when either has passed,
LEAST_SECONDS = 3  # but not more often than this
BESIDE = 48  # columns of a line of progress that neither its bar nor its detail takes
OPENING = "open"  # how names of stages begin that open a model


class StageProgress:
    """Callable ``(stage, done, total, detail)``, as the library reports its progress; use as a context manager.

    ``layers``: a line for every encoded layer instead of one for every block of them.
    """

    def __init__(self, quiet: bool = False, layers: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet, soft_wrap=not sys.stderr.isatty())
        self._show = _Terminal(console) if console.is_terminal else _Log(console)
        self._summary = _BlockSummary(self._show.line, every_layer=layers)

    def __enter__(self) -> StageProgress:
        silence_other_bars()
        self._show.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._summary.finish()
        self._show.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Report that ``done`` of ``total`` steps of ``stage`` are finished; ``detail`` says which one."""
        self._summary.add(detail)
        self._show.step(stage, done, total, detail)
        if done == total:
            self._summary.finish()
            self._summary.last = None


class _Terminal:
    """A bar for each stage, in one line of the terminal's width."""

    def __init__(self, console: Console) -> None:
        room = 28 if console.width >= WIDE else 12
        self._detail_room = console.width - room - BESIDE
        self._bars = Progress(
            TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, min_width=18)),
            BarColumn(room),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
            TextColumn("[dim]{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self.start, self.stop = self._bars.start, self._bars.stop

    def step(self, stage: str, done: int, total: int, detail: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, detail=detail)
        elif done < self._done[stage]:  # a stage that a run comes back to
            self._bars.reset(self._tasks[stage])
        self._done[stage] = done
        self._bars.update(self._tasks[stage], completed=done, total=total, detail=detail)
        if done == total and len(detail) > self._detail_room and not isinstance(detail, EncodedLayer):
            self.line(f"  {stage}: {detail}")  # what a stage ends with is a result

    def line(self, text: str) -> None:
        self._bars.console.print(text, style="dim", highlight=False, markup=False, no_wrap=True, overflow="ellipsis")


class _Log:
    """Plain lines: a stage's beginning, its end, and in between one for each tenth of it or half a minute.

    What opening a model took is said when work begins: most mistakes are found until then, and are one line.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        self._console, self._clock = console, clock
        self._stages: dict[str, _Logged] = {}
        self._opened: list[str] = []

    def start(self) -> None:
        """Nothing is drawn."""

    def stop(self) -> None:
        """Nothing is drawn."""

    def step(self, stage: str, done: int, total: int, detail: str) -> None:
        now = self._clock()
        seen = self._stages.setdefault(stage, _Logged(now, done))
        if done < seen.done:  # a stage that a run comes back to
            seen = self._stages[stage] = _Logged(now, done)
        if not seen.is_due(now, done, total):
            return
        seen.at, seen.done = now, done
        text = f"{stage}: {done}/{total}{_share(done, total)}{seen.times(now, done, total)}  {detail}".rstrip()
        if not stage.startswith(OPENING):
            self.line(text)
        elif done == total:
            self._opened.append(text)

    def line(self, text: str) -> None:
        for said in (*self._opened, text):
            self._say(said)
        self._opened.clear()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Logged:
    """When a stage began, with how much of it done (a resumed run does not begin at zero), and what was last told."""

    began: float
    first: int
    at: float = -LOG_SECONDS
    done: int = -1

    def is_due(self, now: float, done: int, total: int) -> bool:
        if self.done < 0 or (done == total and self.done < total):
            return True
        waited = now - self.at
        return waited >= LOG_SECONDS or (waited >= LEAST_SECONDS and done - self.done >= LOG_SHARE * total)

    def times(self, now: float, done: int, total: int) -> str:
        elapsed, steps = now - self.began, done - self.first
        left = f", {_clock(elapsed / steps * (total - done))} left" if steps and done < total else ""
        return f"  {_clock(elapsed)} elapsed{left}" if steps else ""


@dataclass
class _BlockSummary:
    """One line for each block of layers that was encoded: how many, their bits, how long, the worst.

    Layers are encoded side by side, so a block takes the time from the last layer before it to its own last one.
    """

    line: Callable[[str], None]
    every_layer: bool
    clock: Callable[[], float] = monotonic
    layers: list[EncodedLayer] = field(default_factory=list)
    began: float = 0.0
    last: float | None = None

    def add(self, detail: str) -> None:
        if not isinstance(detail, EncodedLayer):
            return
        if self.every_layer:
            self.line(detail)
            return
        if self.layers and block_of(self.layers[-1].layer) != block_of(detail.layer):
            self.finish()
        if detail.bits is None:
            self.line(detail)
        now = self.clock()
        if not self.layers:
            self.began = now - detail.seconds if self.last is None else self.last
        self.layers.append(detail)
        self.last = now

    def finish(self) -> None:
        if coded := [layer for layer in self.layers if layer.bits is not None]:
            bits = [f"{layer.bits:.2f}" for layer in sorted(coded, key=lambda layer: layer.bits or 0.0)]
            worst = max(coded, key=lambda layer: layer.error or 0.0)
            span = "-".join(dict.fromkeys((bits[0], bits[-1])))
            block, count = block_of(worst.layer), f"{len(coded)} {'layer' if len(coded) == 1 else 'layers'}"
            where = f", worst {worst.layer.removeprefix(block).lstrip('.')}" if worst.layer != block else ""
            seconds = (self.last or self.began) - self.began
            self.line(f"  {block}: {count}, {span} bits, error up to {worst.error:.2g}, {seconds:.1f} s{where}")
        self.layers.clear()


def block_of(layer: str) -> str:
    """The name up to its first number, ``transformer_blocks.3`` of ``transformer_blocks.3.attn.to_q``; else all."""
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", layer)
    return found[0] if found else layer


def _share(done: int, total: int) -> str:
    return f" ({100 * done // total} %)" if total else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def silence_other_bars() -> None:
    """Turn off the bars of diffusers and transformers, which overwrite ours, and their remarks on optional packages."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
