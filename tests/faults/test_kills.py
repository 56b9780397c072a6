"""SIGKILL before any change of the disk, publication and clearing up included: the same command ends with equal bytes.

`python -m tests.faults.kills` kills at random times instead.
"""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Scene
from tests.faults.runs import TinyRun, at_change, check_finished, digest, finish

RENAMED = ".out.N.partial"
"""The folder that is complete, before it gets its name."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kind_of(event: str, path: str) -> tuple[str, str]:
    """Changes of one kind differ in the layer's or component's name only."""
    return event, re.sub(r"/[^/]+\.(json|safetensors)(\.tmp)?$", r"/*.\1\2", re.sub(r"\.\d+\.", ".N.", path))


def killed_at(scene: Scene, folder: Path, number: int, from_encoded: bool) -> None:
    run = scene.run(folder, from_encoded=from_encoded)
    if from_encoded:
        scene.killed_again(run, number)
    else:
        assert run.run(at_change(folder, number, kill)).code == -signal.SIGKILL
    if run.output.exists():
        assert digest(run.output) == scene.whole  # complete, whatever is left to clear up
    done = run.run()
    assert done.code == 0, done.said
    check_finished(run, scene.whole)


def publishing_steps(scene: Scene) -> list[int]:
    """One change of each kind among those of a run that finds everything encoded, from publication on, and the last."""
    kinds: dict[tuple[str, str], int] = {}
    for number, (event, path) in enumerate(scene.resumed, 1):
        if number >= scene.publishing_again:
            kinds.setdefault(kind_of(event, path), number)
    return sorted({*kinds.values(), len(scene.resumed)})


def test_killed_around_the_rename_and_in_clearing_up(scene: Scene, tmp_path: Path) -> None:
    """The few steps that everything hangs on: the rename, the one after it, and the last removal."""
    assert len(publishing_steps(scene)) > 20
    rename = scene.number_of("os.rename", RENAMED)
    for number in (rename, rename + 1, scene.number_of("os.remove", ".out.partial.journal")):
        killed_at(scene, tmp_path / str(number), number, from_encoded=True)


@pytest.mark.slow
def test_killed_at_every_kind_of_publication_step(scene: Scene, tmp_path: Path) -> None:
    for number in publishing_steps(scene):
        killed_at(scene, tmp_path / str(number), number, from_encoded=True)


@pytest.mark.slow
def test_killed_at_random_steps_of_a_whole_run(scene: Scene, tmp_path: Path) -> None:
    for number in random.Random(0).sample(range(1, scene.publishing), 8):
        killed_at(scene, tmp_path / str(number), number, from_encoded=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_encoding(scene: Scene, tmp_path: Path, number: int) -> None:
    run = scene.run(tmp_path)
    layers = [n for n, (_, path) in enumerate(scene.steps, 1) if "unet.layers/" in path]
    died = run.run(at_change(tmp_path, layers[len(layers) // 2], lambda: os.kill(os.getpid(), number)))
    assert died.code == (128 + number if number == signal.SIGINT else -number)
    assert "Traceback" not in died.said
    assert run.work.exists()
    assert run.run().code == 0
    check_finished(run, scene.whole)


def test_a_second_run_on_one_folder_is_refused_while_the_first_lives(scene: Scene, tmp_path: Path) -> None:
    run = scene.run(tmp_path, from_encoded=True)
    started, go_on = os.pipe(), os.pipe()

    def wait() -> None:
        os.write(started[1], b"!")
        os.read(go_on[0], 1)

    first = run.start(scene.at_change_again(run, scene.publishing_again, wait))
    try:
        os.read(started[0], 1)
        second = run.run()
    finally:
        os.kill(first[0], signal.SIGKILL)  # its lock dies with it
        killed = finish(*first)
    assert second.code == 2
    assert "another process is working in" in second.message
    assert "Traceback" not in second.said
    assert killed.code == -signal.SIGKILL
    assert run.run().code == 0
    check_finished(run, scene.whole)


def test_the_same_command_again_is_refused_once_all_is_done(scene: Scene, tmp_path: Path) -> None:
    run = scene.run(tmp_path, from_encoded=True)
    assert run.run().code == 0
    again = run.run()
    assert again.code == 2
    assert "--overwrite" in again.message
    check_finished(run, scene.whole)


def test_killed_where_the_sources_times_have_changed(scene: Scene, tmp_path: Path) -> None:
    """Some file systems show another time of a file later. Nothing is encoded anew, and the same bytes are written."""
    for path in (scene.source / "model").rglob("*.safetensors"):
        os.utime(path)
    killed_at(scene, tmp_path / "run", scene.number_of("os.rename", RENAMED), from_encoded=True)


def test_another_command_clears_up_and_is_refused(scene: Scene, tmp_path: Path) -> None:
    """Where a run was killed after publication, its output is not that of a command with other settings."""
    run = scene.run(tmp_path, from_encoded=True)
    number = scene.number_of("os.rename", RENAMED) + 1
    scene.killed_again(run, number)
    other = TinyRun(run.model, run.prompts, run.output, ("--bits", "3")).run()
    assert other.code == 2
    assert "--overwrite" in other.message
    check_finished(run, scene.whole)
