"""A tiny run of the command line in a process of its own, which a test can limit, signal or kill."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vqcompress
from vqcompress import compression  # here, so that no run has to import it
from vqcompress.cli.main import main
from vqcompress.cli.quantize import quantize

__all__ = ["CHANGES", "Child", "TinyRun", "at_change", "changes_below", "compression", "digest", "main", "quantize"]

CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate", "os.chmod")
Hook = Callable[[str, tuple[Any, ...]], None]


@dataclass(frozen=True)
class Child:
    """How a run ended: exit code (``-signal`` if it was killed), and what it wrote to stderr and stdout."""

    code: int
    said: str

    @property
    def message(self) -> str:
        """The last line."""
        return (self.said.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class TinyRun:
    """``vqcompress quantize MODEL -o OUTPUT`` with two prompts, on a model of two blocks: about two seconds."""

    model: Path
    prompts: Path
    output: Path
    options: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        """The run's folder."""
        return self.output.with_name(self.output.name + ".partial")

    def arguments(self) -> list[str]:
        """Of the command line."""
        sampling = ["--count", "2", "--steps", "1", "--resolution", "8"]
        chosen = ["--method", "rtn", "--bits", "4", "--budget", "model", *sampling, *self.options]
        return ["quantize", str(self.model), "-o", str(self.output), "--prompts", str(self.prompts), *chosen]

    def start(self, before: Callable[[], Any] = lambda: None) -> tuple[int, int]:
        """(process, pipe of what it says) of a run that calls ``before`` first."""
        reading, writing = os.pipe()
        gc.freeze()  # so that the child's collections touch, and copy, nothing of what the tests before it left
        process = os.fork()
        if process:
            gc.unfreeze()
            os.close(writing)
            return process, reading
        code = 70
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            torch.set_num_threads(1)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
            before()
            main(self.arguments())
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001 - the child must not return
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, before: Callable[[], Any] = lambda: None, kill_after: float | None = None) -> Child:
        """Run to the end, or kill it after some seconds."""
        return finish(*self.start(before), kill_after)


def finish(process: int, reading: int, kill_after: float | None = None) -> Child:
    """Wait for the process that `TinyRun.start` started."""
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    return Child(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said)


def changes_below(folder: Path, act: Callable[[int, str, str], None]) -> Callable[[], None]:
    """To be called in a child: ``act(number, event, path)`` before each change of the disk below ``folder``."""

    def install() -> None:
        count, inside = 0, f"{folder}{os.sep}"

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in CHANGES and str(arguments[0]).startswith(inside) and _writes(event, arguments):
                count += 1
                act(count, event, str(arguments[0]))

        sys.addaudithook(hook)

    return install


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    return event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def at_change(folder: Path, which: int | tuple[tuple[str, str], int], act: Callable[[], Any]) -> Callable[[], None]:
    """To be called in a child: ``act`` before one change of the disk below ``folder``, by its number among all or as
    ((event, path), number among those)."""
    seen = Counter[tuple[str, str]]()

    def stop(count: int, event: str, path: str) -> None:
        change = event, without_process(Path(path).relative_to(folder))
        seen[change] += 1
        if which in (count, (change, seen[change])):
            act()

    return changes_below(folder, stop)


def without_process(path: Path) -> str:
    """``.out.N.partial/x`` for ``.out.1234.partial/x``: names that processes share."""
    return re.sub(r"^\.out\.\d+\.", ".out.N.", str(path))


def digest(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_finished(run: TinyRun, whole: dict[str, str]) -> None:
    """Assert that ``run`` has left its folder, with the bytes ``whole``, and nothing else."""
    assert digest(run.output) == whole
    assert vqcompress.verify(run.output) == []
    assert sorted(path.name for path in run.output.parent.iterdir()) == [run.output.name]
