"""Two processes under torchrun make the folder that one makes, byte for byte, also when one of them died on the way."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vqcompress
from tests.architectures import tiny_pipelines as _tiny
from vqcompress.errors import RecipeError
from vqcompress.moments import second_moment as moments

FEW_COLUMNS = 64  # so small that some layers keep their samples, as large ones do
RECIPE: dict[str, Any] = {
    "method": "trellis",
    "bits": 4.0,
    "settings": {"state_bits": 8},
    # Three batches for two processes: the last round has one.
    "calibration": {"count": 3, "steps": 1, "height": 16, "width": 16, "batch_size": 1, "rows_per_call": 20},
}
WORKER = """
import os, signal, sys
import torch, vqcompress
from vqcompress.moments import second_moment as moments

torch.set_num_threads(1)
moments.LEAST_COLUMNS = {columns}
source, output, dies = sys.argv[1:]
encoded = []
def dying(event, arguments):
    if event == "os.rename" and "unet.layers/" in str(arguments[1]):
        encoded.append(1)
        if dies == os.environ["RANK"] and len(encoded) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
if dies != "none":
    sys.addaudithook(dying)
vqcompress.quantize(source, output, **{recipe})
"""


def together(source: Path, output: Path, dies: str = "none") -> subprocess.CompletedProcess[str]:
    script = output.with_name("worker.py")
    script.write_text(WORKER.format(columns=FEW_COLUMNS, recipe=RECIPE))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, str(source), str(output), dies], env=environment, capture_output=True, text=True, timeout=600
    )


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_one_dies_both_run_again_and_the_bytes_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tiny.TINY["sdxl"]().save_pretrained(tmp_path / "tiny")
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    died = together(tmp_path / "tiny", tmp_path / "together" / "out", dies="1")
    assert "SIGKILL" in died.stderr
    assert died.returncode != 0
    assert not (tmp_path / "together" / "out").exists()
    assert list((tmp_path / "together" / "out.partial" / "unet.layers").glob("*.safetensors"))
    again = together(tmp_path / "tiny", tmp_path / "together" / "out")
    assert again.returncode == 0, again.stderr
    assert vqcompress.verify(tmp_path / "together" / "out") == []
    assert not (tmp_path / "together" / "out.partial").exists()
    monkeypatch.setattr(moments, "LEAST_COLUMNS", FEW_COLUMNS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = vqcompress.quantize(str(tmp_path / "tiny"), tmp_path / "alone" / "out", **RECIPE)
    torch.set_num_threads(before)
    assert digest(tmp_path / "together" / "out") == digest(alone)


def test_fine_tuning_is_for_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="torchrun"):
        vqcompress.quantize("shapes", tmp_path / "out", finetune="blocks")
    assert not list(tmp_path.iterdir())
