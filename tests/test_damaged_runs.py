"""Every file of a run folder and of a calibration folder, deleted or damaged: the next run restores it or says how.

The model is small, and two of its layers are quantized. Where a run refuses a file, the test follows the message.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vqcompress
from tests.conftest import tiny_stable_diffusion
from vqcompress.errors import VQCompressError

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1."
FIRST, SECOND = ATTENTION + "to_q", ATTENTION + "to_out.0"
CALIBRATION = {"count": 2, "steps": 1, "height": 8, "width": 8, "batch_size": 1}
RECIPE = {"bits": 4.0, "keep": {rf"^(?!{ATTENTION}to_(q|out.0)$)": "not in this test"}}
ADDITIVE = {"dimension": 4, "code_bits": 4, "codebooks": 4, "beam": 1, "rounds": 1, "coordinate_descent": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "additive": {**RECIPE, "method": "additive", "settings": ADDITIVE},
    "outputs": {**RECIPE, "settings": {"state_bits": 8}, "output_feedback": True},
    "sequential": {**RECIPE, "settings": {"state_bits": 8}, "budget": "layer"},
}
CODES = [f"unet.layers/{layer}.safetensors" for layer in (FIRST, SECOND)]
SPECS = [f"unet.layers.spec/{layer}.json" for layer in (FIRST, SECOND)]
MOMENTS = [f"unet.moments/{layer}.safetensors" for layer in (FIRST, SECOND)]
GROUPS = [f"unet.moments.layers/{layer}.json" for layer in (FIRST, SECOND)]
OF_RUN = {
    "additive": [
        *["signature.json", "unet.allocations/allocated.json", "unet.bits/all.json"],
        *["unet.codebooks/shared.safetensors", *CODES, *SPECS],
    ],
    "outputs": [f"unet.outputs/{layer}.safetensors" for layer in (FIRST, SECOND)],
    "sequential": [
        *CODES[:1],
        *SPECS[:1],
        *[f"unet.moments-in-order.layers/{layer}.json" for layer in (FIRST, SECOND)],
        f"unet.moments-in-order/{SECOND}.safetensors",
    ],
}
OF_CALIBRATION = {
    "additive": [
        *["signature.json", "unet.importance/all.json", *MOMENTS, *GROUPS],
        *["unet.trajectories/0.json", "unet.trajectories/errors.json"],
    ],
    "sequential": [
        *["calls/00000.json", "calls/00000.safetensors", "calls/00001.json", "calls/00001.safetensors"],
        *["calls.trajectory/calls.json", "calls.trajectory/length.json"],
    ],
}
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
}


class PowerCut(BaseException):
    """Not an Exception, so nothing on the way may swallow it."""


class Case:
    """A recipe's finished folder, and its run's folder and calibration folder where a run stopped after encoding."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        (folder / "prompts.txt").write_text("a\nb c\n")
        self.run(folder / "whole")
        self.finished = digest(folder / "whole")
        with pytest.raises(PowerCut):
            self.run(folder / "stopped", stop_after_encoding=True)

    def run(self, work: Path, stop_after_encoding: bool = False) -> None:
        def progress(stage: str, done: int, total: int, detail: str) -> None:
            if stop_after_encoding and stage.startswith("encode") and done == total:
                raise PowerCut

        order = "sequential" if self.name == "sequential" else "parallel"
        calibration = {**CALIBRATION, "prompts": str(self.folder / "prompts.txt"), "order": order}
        vqcompress.quantize(
            tiny_stable_diffusion(), work / "out", calibration_folder=work / "calibration",
            progress=progress, **{**RECIPES[self.name], "calibration": calibration},
        )  # fmt: skip

    def check(self, start: Path, file: str, work: Path) -> None:
        """However ``file`` of a copy of ``start`` was damaged, a run ends in the same bytes, if need be as advised."""
        for kind, damage in DAMAGES.items():
            shutil.copytree(start, work / kind)
            damage(work / kind / file)
            try:
                self.run(work / kind)
            except VQCompressError as error:
                follow(str(error))
                if kind != "halved":
                    continue
                self.run(work / kind)
            assert digest(work / kind) == self.finished, kind


def follow(message: str) -> None:
    """Do what an error's message says."""
    if folder := re.search(r"delete the folder (\S+) to start anew", message):
        shutil.rmtree(folder[1])
    else:
        file = re.match(r"(\S+) is damaged .*; delete it and run again", message)
        assert file, message
        Path(file[1]).unlink()


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp(name))
        return made[name]

    return case


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in OF_RUN.items() for file in files])
def test_a_file_of_a_stopped_run(case_of: Callable[[str], Case], tmp_path: Path, name: str, file: str) -> None:
    case = case_of(name)
    case.check(case.folder / "stopped", f"out.partial/{file}", tmp_path)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in OF_CALIBRATION.items() for file in files])
def test_a_file_of_a_calibration_folder(case_of: Callable[[str], Case], tmp_path: Path, name: str, file: str) -> None:
    """As another run finds it; and afterwards the folder is as it was, so that runs after that one find it whole."""
    case = case_of(name)
    shutil.copytree(case.folder / "stopped" / "calibration", tmp_path / "start" / "calibration")
    case.check(tmp_path / "start", f"calibration/{file}", tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_no_file_is_forgotten(case_of: Callable[[str], Case], name: str) -> None:
    """Every kind of file that a stopped run leaves is damaged by one of the tests above."""
    stopped = case_of(name).folder / "stopped"
    for folder, listed in ((stopped / "out.partial", OF_RUN), (stopped / "calibration", OF_CALIBRATION)):
        kinds = {(Path(file).parent, Path(file).suffix) for files in listed.values() for file in files}
        assert {(Path(file).parent, Path(file).suffix) for file in digest(folder)} <= kinds
