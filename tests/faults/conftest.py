"""A tiny model, and what a run on it writes if nothing goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_stable_diffusion
from tests.faults.runs import TinyRun, at_change, changes_below, digest, without_process


@dataclass(frozen=True)
class Scene:
    """``source`` has the model and prompts; ``whole`` is the finished folder's digest.

    ``steps`` are the changes of the disk of a whole run, as (event, path); ``encoded`` is the folder of a run that was
    stopped before the first of those that publish, and ``resumed`` are the changes of one that goes on from there.
    """

    source: Path
    whole: dict[str, str]
    steps: tuple[tuple[str, str], ...]
    encoded: Path
    resumed: tuple[tuple[str, str], ...] = ()

    def run(self, folder: Path, *options: str, from_encoded: bool = False) -> TinyRun:
        """A run that writes ``folder/out``, new or where `encoded` stopped."""
        folder.mkdir(exist_ok=True)
        if from_encoded:
            shutil.copytree(self.encoded / "out.partial", folder / "out.partial")
        return TinyRun(self.source / "model", self.source / "prompts.txt", folder / "out", options)

    @property
    def publishing(self) -> int:
        """The number of the first change that publishes, in a whole run."""
        return _publishing(self.steps)

    @property
    def publishing_again(self) -> int:
        """The same, in a run that finds everything encoded."""
        return _publishing(self.resumed)

    def killed_again(self, run: TinyRun, number: int) -> None:
        """Kill a run that finds everything encoded before its change ``number``."""
        died = run.run(self.at_change_again(run, number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        assert died.code == -signal.SIGKILL, died.said

    def at_change_again(self, run: TinyRun, number: int, act: Callable[[], Any]) -> Callable[[], None]:
        """`at_change` for a run that finds everything encoded. The change is known by what it does: one that finds its
        source's files with other times than before, as some file systems show them, notes them before it goes on."""
        change = self.resumed[number - 1]
        return at_change(run.output.parent, (change, self.resumed[:number].count(change)), act)

    def number_of(self, event: str, path: str) -> int:
        """The number of the first such change of a run that finds everything encoded."""
        return next(number for number, step in enumerate(self.resumed, 1) if step == (event, path))


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    source = tmp_path_factory.mktemp("faults")
    tiny_stable_diffusion().save_pretrained(source / "model")
    (source / "prompts.txt").write_text("a\nb c\n")
    for name in ("whole", "encoded"):
        (source / name).mkdir()
    run = TinyRun(source / "model", source / "prompts.txt", source / "whole" / "out")
    scene = Scene(source, {}, _steps(run, source / "steps"), source / "encoded")
    stopped = TinyRun(run.model, run.prompts, source / "encoded" / "out")
    stopped.run(at_change(stopped.output.parent, scene.publishing, lambda: os._exit(9)))
    resumed = _steps(scene.run(source / "resumed", from_encoded=True), source / "steps again")
    return replace(scene, whole=digest(run.output), resumed=resumed)


def _publishing(steps: tuple[tuple[str, str], ...]) -> int:
    return next(number for number, (_, path) in enumerate(steps, 1) if path.startswith(".out."))


def _steps(run: TinyRun, log: Path) -> tuple[tuple[str, str], ...]:
    """The changes of the disk of a run that nobody stops. Processes have no number in their names: ``.out.N.``."""

    def note(number: int, event: str, path: str) -> None:
        name = without_process(Path(path).relative_to(run.output.parent))
        with log.open("a") as file:
            file.write(f"{event}\t{name}\n")

    done = run.run(changes_below(run.output.parent, note))
    assert done.code == 0, done.said
    return tuple((event, path) for event, path in (line.split("\t") for line in log.read_text().splitlines()))
