"""SIGKILL at any file operation of a run, publishing included: the same command goes on and ends with the same bytes."""

from __future__ import annotations

import hashlib
import importlib.util
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

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "architectures" / "tiny_pipelines.py")
assert _spec is not None
assert _spec.loader is not None
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)

RECIPE: dict[str, Any] = {
    "method": "rtn",
    "bits": 4,
    "budget": "model",  # records moments and importance too
    "calibration": {"count": 1, "steps": 1, "height": 16, "width": 16, "batch_size": 1},
}
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate")
KILLS = 20

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source") / "tiny"
    _tiny.TINY["sdxl"]().save_pretrained(folder)
    return folder


def compress(source: Path, output: Path, kill_at: int | None, count: Any) -> None:
    """One run in its own process, which ends by its own SIGKILL at the ``kill_at``-th change below ``output``'s parent."""
    inside = str(output.parent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and str(arguments[0]).startswith(inside):
            count.value += 1
            if count.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.addaudithook(hook)
    compression.quantize(str(source), output, **RECIPE)


def run(source: Path, output: Path, kill_at: int | None = None) -> tuple[int, int]:
    """(exit code, changes on disk) of one run."""
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    process = context.Process(target=compress, args=(source, output, kill_at, count))
    process.start()
    process.join()
    return process.exitcode or 0, count.value


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_killed_at_twenty_random_moments(source: Path, tmp_path: Path) -> None:
    code, changes = run(source, tmp_path / "whole" / "out")
    assert code == 0
    whole = digest(tmp_path / "whole" / "out")
    draw = random.Random(0)
    publishing = range(changes - 40, changes)  # the last files, the rename, the removal of the run's folder
    moments = draw.sample(range(1, changes - 40), KILLS // 2) + draw.sample(publishing, KILLS // 2)
    for moment in moments:
        output = tmp_path / str(moment) / "out"
        output.parent.mkdir()
        code, _ = run(source, output, kill_at=moment)
        assert code == -signal.SIGKILL
        if output.exists():
            assert vqcompress.verify(output) == []
            assert digest(output) == whole
            continue
        assert run(source, output)[0] == 0
        assert digest(output) == whole
        assert sorted(path.name for path in output.parent.iterdir()) == ["out"]
