"""What the machine refuses, memory, disk or permission: one line, exit code 2, nothing lost, the command goes on."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Scene
from tests.faults.runs import Child, TinyRun, check_finished, digest
from vqcompress.calibration.record import RecordingLimits, record_moments
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.disk import free_bytes, write_problem
from vqcompress.errors import CalibrationError

LIMITS = {"nothing": 0, "less than a second moment": 4_000, "less than the weights": 200_000}


def limited(kind: int, size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (size, size))


def check_one_line(ended: Child) -> None:
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    assert ended.message.startswith("vqcompress: ")


@pytest.mark.parametrize("size", LIMITS.values(), ids=LIMITS)
def test_a_file_that_may_not_grow(scene: Scene, tmp_path: Path, size: int) -> None:
    run = scene.run(tmp_path)
    ended = run.run(limited(resource.RLIMIT_FSIZE, size))
    check_one_line(ended)
    assert "ulimit -f" in ended.message
    assert not run.output.exists()
    assert run.run().code == 0
    check_finished(run, scene.whole)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that makes a file system of so many bytes. Only root can; `RLIMIT_FSIZE` is tested everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size: int) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("may not mount")
        return folder

    yield make
    subprocess.run(["umount", folder], capture_output=True)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_disk_that_fills_up(scene: Scene, tmp_path: Path, full_disk: Callable[[int], Path], share: float) -> None:
    """While recording, or while publishing; then there is room, and the same command ends with the same bytes."""
    whole = used(scene.encoded) + used(scene.source / "whole")
    run = scene.run(full_disk(int(2 * whole)))
    filler = run.output.parent / "filler"
    filler.write_bytes(bytes(int(2 * whole - share * whole)))
    ended = run.run()
    check_one_line(ended)
    assert "free" in ended.message
    assert not run.output.exists()
    filler.unlink()
    done = run.run()
    assert done.code == 0, done.said
    check_finished(run, scene.whole)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_folder_that_may_not_be_written(scene: Scene, tmp_path: Path) -> None:
    """Root may write everywhere but in the kernel's own file systems."""
    run = scene.run(tmp_path)
    place = Path("/proc/vqcompress") if os.geteuid() == 0 else tmp_path / "closed"
    if os.geteuid():
        place.mkdir(mode=0o555)
    ended = TinyRun(run.model, run.prompts, place / "out").run()
    check_one_line(ended)
    assert str(place) in ended.message
    assert run.run().code == 0
    check_finished(TinyRun(run.model, run.prompts, run.output), scene.whole)


def memory_in_use() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("room", [1, 16, 64])
def test_too_little_memory(scene: Scene, tmp_path: Path, room: int) -> None:
    """``room`` MiB of address space are left. Whatever fails then, it is one line, or there was enough."""
    run = scene.run(tmp_path)
    ended = run.run(lambda: limited(resource.RLIMIT_AS, memory_in_use() + room * 2**20)())
    assert ended.code in (0, 2), ended.said
    assert "Traceback" not in ended.said
    if ended.code:
        assert "memory" in ended.message
        assert run.run().code == 0
    check_finished(run, scene.whole)


def test_a_clock_that_runs_backwards(scene: Scene, tmp_path: Path) -> None:
    run = scene.run(tmp_path, from_encoded=True)
    for path in [*run.work.rglob("*"), *run.model.rglob("*")]:
        os.utime(path, (2**33, 2**33))  # the year 2242

    def turn_back() -> None:
        before = [2.0**31]

        def earlier() -> float:
            before[0] -= 60.0
            return before[0]

        time.time = earlier

    done = run.run(turn_back)
    assert done.code == 0, done.said
    check_finished(run, scene.whole)


def test_too_little_disk_is_known_before_the_run(
    scene: Scene, tmp_path: Path, full_disk: Callable[[int], Path]
) -> None:
    run = scene.run(full_disk(300_000))
    ended = run.run()
    check_one_line(ended)
    assert "GB free, and this run writes at least" in ended.message
    assert list(run.output.parent.iterdir()) == []


def test_too_little_disk_for_moments_is_known_before_they_are_recorded(make_tiny_pipeline: Callable) -> None:
    from vqcompress.architectures import architecture_of
    from vqcompress.sampling_config import SamplingConfig

    pipeline = make_tiny_pipeline()
    architecture = architecture_of(pipeline)
    run = SamplingRun(pipeline, architecture, ("a",), sampling=SamplingConfig(1, height=8, width=8))
    layers = [plan.name for plan in architecture.layers(pipeline, "unet") if plan.reason is None]
    recorded = {names[0]: moment for names, moment in record_moments(run, "unet", layers)}
    needed = sum(4 * moment.columns**2 for moment in recorded.values())
    assert list(record_moments(run, "unet", layers, RecordingLimits(free_disk=needed)))
    with pytest.raises(CalibrationError, match=r"second moments of \d+ inputs take .* GB free"):
        list(record_moments(run, "unet", layers, RecordingLimits(free_disk=needed // 2)))


def test_free_bytes_and_problems(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet" / "there") == pytest.approx(free_bytes(tmp_path), rel=0.2)
    assert write_problem(ValueError("no")) is None
    assert "disk is full" in str(write_problem(RuntimeError("No space left on device (os error 28)")))
    assert digest(tmp_path) == {}
