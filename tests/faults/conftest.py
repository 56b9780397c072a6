"""A tiny model, and what a run on it writes if nothing goes wrong."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import tiny_stable_diffusion
from tests.faults.runs import TinyRun, at_change, changes_below, digest


@dataclass(frozen=True)
class Scene:
    """``source`` has the model and prompts; ``whole`` is the finished folder's digest.

    ``steps`` are the changes of the disk of a whole run, as (event, path); ``encoded`` is the folder of a run that was
    stopped before the first of those that publish.
    """

    source: Path
    whole: dict[str, str]
    steps: tuple[tuple[str, str], ...]
    encoded: Path

    def run(self, folder: Path, *options: str, from_encoded: bool = False) -> TinyRun:
        """A run that writes ``folder/out``, new or where `encoded` stopped."""
        folder.mkdir(exist_ok=True)
        if from_encoded:
            shutil.copytree(self.encoded / "out.partial", folder / "out.partial")
        return TinyRun(self.source / "model", self.source / "prompts.txt", folder / "out", options)

    @property
    def publishing(self) -> int:
        """The number of the first change that publishes."""
        return next(number for number, (_, path) in enumerate(self.steps, 1) if path.startswith(".out."))


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
    log = source / "steps"

    def note(number: int, event: str, path: str) -> None:
        with log.open("a") as file:
            file.write(f"{event}\t{Path(path).relative_to(run.output.parent)}\n")

    done = run.run(changes_below(run.output.parent, note))
    assert done.code == 0, done.said
    steps = tuple((event, path) for event, path in (line.split("\t") for line in log.read_text().splitlines()))
    scene = Scene(source, digest(run.output), steps, source / "encoded")
    stopped = TinyRun(run.model, run.prompts, source / "encoded" / "out")
    stopped.run(at_change(stopped.output.parent, scene.publishing, lambda: os._exit(9)))
    return scene
