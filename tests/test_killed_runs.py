"""SIGKILL at any file operation of a run, publishing included: the same command then ends with the same bytes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vqcompress
from vqcompress import compression  # here, so that no run has to import it

RECIPE: dict[str, Any] = {
    "method": "rtn",
    "bits": 4,
    "budget": "model",  # records moments and importance too
    "calibration": {"count": 1, "steps": 1, "height": 16, "width": 16, "batch_size": 1},
}
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate")
KILLS = 20

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def compress(tiny_sdxl: Path, output: Path, kill_at: int | None, count: Any) -> None:
    """One run in a process that kills itself at the ``kill_at``-th change below ``output``'s parent."""
    inside = str(output.parent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and str(arguments[0]).startswith(inside):
            count.value += 1
            if count.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.addaudithook(hook)
    compression.quantize(str(tiny_sdxl), output, **RECIPE)


def run(tiny_sdxl: Path, output: Path, kill_at: int | None = None) -> tuple[int, int]:
    """(exit code, changes on disk) of one run."""
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    process = context.Process(target=compress, args=(tiny_sdxl, output, kill_at, count))
    process.start()
    process.join()
    return process.exitcode or 0, count.value


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tiny_sdxl: Path, tmp_path: Path) -> None:
    code, changes = run(tiny_sdxl, tmp_path / "whole" / "out")
    assert code == 0
    whole = digest(tmp_path / "whole" / "out")
    draw = random.Random(0)
    publishing = range(changes - 40, changes)  # the last files, the rename, the removal of the run's folder
    moments = draw.sample(range(1, changes - 40), KILLS // 2) + draw.sample(publishing, KILLS // 2)
    for moment in moments:
        output = tmp_path / str(moment) / "out"
        output.parent.mkdir()
        code, _ = run(tiny_sdxl, output, kill_at=moment)
        assert code == -signal.SIGKILL
        if output.exists():
            assert vqcompress.verify(output) == []
            assert digest(output) == whole
            continue
        assert run(tiny_sdxl, output)[0] == 0
        assert digest(output) == whole
        assert sorted(path.name for path in output.parent.iterdir()) == ["out"]
