"""A stopped run, or recordings that were kept, meet other settings, weights or another scheduler.

What depends on the change is made again, and the result is that of a run which started with it. What does not is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import vqcompress
from tests.conftest import FEW_LAYERS, tiny_stable_diffusion
from vqcompress.errors import RecipeError
from vqcompress.recipe import Recipe
from vqcompress.run_signature import StageInputs, changes_since, differences
from vqcompress.run_store import RunStore
from vqcompress.stages.signature import run_inputs

CALIBRATION = {"count": 2, "steps": 2, "height": 8, "width": 8, "batch_size": 1}
RECIPE: dict[str, Any] = {"method": "rtn", "bits": 4, "budget": "model", "ignore": FEW_LAYERS}
LOGGER = "vqcompress.run_store"


class PowerCut(BaseException):
    """Not an Exception, so nothing on the way may swallow it."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_stable_diffusion().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("a\nb c\n")
    return tmp_path / "prompts.txt"


def run(
    model: Path, prompts: Path, output: Path, stages: list[str] | None = None, stop_at: str = "", **changes: Any
) -> Path:
    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if stages is not None:
            stages.append(stage)
        if stop_at and stage.startswith(stop_at) and done == total:
            raise PowerCut

    calibration = {**CALIBRATION, "prompts": str(prompts), **changes.pop("calibration", {})}
    return vqcompress.quantize(
        str(model), output, progress=progress, **{**RECIPE, "calibration": calibration, **changes}
    )


def stopped(model: Path, prompts: Path, output: Path, **changes: Any) -> None:
    with pytest.raises(PowerCut):
        run(model, prompts, output, stop_at="encode", **changes)


def unet(folder: Path) -> str:
    return hashlib.sha256((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"bits": 3}, "bits: 4.0 -> 3.0"), ({"method": "gptq"}, 'method: "rtn" -> "gptq"')],
    ids=["bits", "method"],
)
def test_another_setting_of_encoding_keeps_the_calibration(
    model: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], named: str
) -> None:
    stopped(model, prompts, tmp_path / "out")
    stages: list[str] = []
    folder = run(model, prompts, tmp_path / "out", stages, **change)
    assert not [stage for stage in stages if stage.startswith(("calibrate", "importance"))]
    assert unet(folder) == unet(run(model, prompts, tmp_path / "fresh", **change))
    (line,) = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert named in line
    assert "unet.layers" in line
    assert "moments" not in line
    assert not list(tmp_path.glob("*.partial"))


def test_memory_may_be_given_at_the_next_start(
    model: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a run that had too little: nothing is made again, for results do not depend on it."""
    stopped(model, prompts, tmp_path / "out")
    stages: list[str] = []
    run(model, prompts, tmp_path / "out", stages, calibration={"memory_budget_gb": 1.0})
    assert not [stage for stage in stages if stage.startswith(("calibrate", "importance"))]
    assert not [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize("change", ["prompts", "steps", "seed"])
def test_another_calibration_is_refused_and_named(model: Path, prompts: Path, tmp_path: Path, change: str) -> None:
    """It costs hours to record; a mistyped option must not throw it away."""
    stopped(model, prompts, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out.partial" / "unet.moments").iterdir())
    changes: dict[str, Any] = {"steps": {"calibration": {"steps": 1}}, "seed": {"seed": 1}}.get(change, {})
    if change == "prompts":
        prompts.write_text("a\nb d\n")
    with pytest.raises(RecipeError, match=f"other settings .*{change}"):
        run(model, prompts, tmp_path / "out", **changes)
    assert sorted(path.name for path in (tmp_path / "out.partial" / "unet.moments").iterdir()) == before


def edit_scheduler(model: Path) -> None:
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.5}))


def edit_one_weight(model: Path) -> None:
    """One value of 16,384, of a layer in the middle, without a change of size."""
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    flat = tensors[name].flatten()
    flat[flat.numel() // 2 + 1] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def edit_text_encoder(model: Path) -> None:
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name] * 2
    save_file(tensors, path, metadata={"format": "pt"})


EDITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "scheduler": (edit_scheduler, r"scheduler\.beta_end: 0\.02 -> 0\.5"),
    "weight": (edit_one_weight, r"weights\.unet changed"),
    "text encoder": (edit_text_encoder, r"weights\.text_encoder changed"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kept", [False, True], ids=["stopped", "kept recordings"])
def test_a_changed_source_is_recognised_and_recorded_again(
    model: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, edit: str, kept: bool
) -> None:
    change, named = EDITS[edit]
    folders = {"calibration_folder": tmp_path / "kept"} if kept else {}
    if kept:
        run(model, prompts, tmp_path / "before", **folders)
    else:
        stopped(model, prompts, tmp_path / "out")
    change(model)
    folder = run(model, prompts, tmp_path / "out", **folders)
    assert unet(folder) == unet(run(model, prompts, tmp_path / "fresh"))
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(lines) == 1
    assert re.search(named, lines[0])
    assert "unet.moments" in lines[0]


def test_touched_files_are_read_again_and_nothing_is_made_again(
    model: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hash decides; the time of a file only says whether it must be read for it. So a wrong clock costs nothing."""
    stopped(model, prompts, tmp_path / "out")
    for path in [*model.rglob("*.safetensors"), *(tmp_path / "out.partial").rglob("*.*")]:
        path.touch()
        os.utime(path, (0, 0))
    stages: list[str] = []
    run(model, prompts, tmp_path / "out", stages)
    assert not [stage for stage in stages if stage.startswith(("calibrate", "importance"))]
    assert not [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    "wrong", [{"calibration": {"height": 30}}, {"settings": {"no_such": 1}}, {"components": ["x"]}]
)
def test_a_start_that_failed_leaves_nothing(model: Path, prompts: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(vqcompress.VQCompressError) as caught:
        run(model, prompts, tmp_path / "out", **wrong)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_component_depends_on_those_that_were_packed_before_it() -> None:
    class Prompts:
        sha256 = "0" * 64

    def found(stage: str, **changes: Any) -> Any:
        recipe = Recipe.parse({"model": "m", "components": ["text_encoder", "unet"], **changes})
        inputs = run_inputs(recipe, Prompts(), {"weights": {}}, ("unet",))  # type: ignore[arg-type]
        (one,) = [each for each in inputs if each.holds(stage)]
        return one.found

    for stage, depends in (
        ("text_encoder.moments", False),
        ("unet.moments.layers", True),
        ("unet.importance", True),
        ("unet.outputs", True),
        ("calls", True),
        ("teacher.train-01234567", False),
        ("text_encoder.layers", True),
        ("unet.moments-in-order", True),
        ("unet.bits", True),
        ("finetune.states", True),
    ):
        assert (found(stage) != found(stage, bits=2)) == depends, stage


def test_older_folders_and_hashes_in_lines(tmp_path: Path) -> None:
    inputs = [StageInputs(r"a\..*", {"seed": 0}, {"weights": "0" * 64})]
    assert changes_since({}, inputs, ["b.x"]).stale == {}
    assert changes_since({}, inputs, ["a.x"]).stale == {"a.x": ("it was made by another version",)}
    assert differences({"w": "0" * 64}, {"w": "1" * 64}) == ["w changed"]
    other = StageInputs("b", {"seed": 0})
    with RunStore(tmp_path / "run", [*inputs, other]) as store:
        store.put_json("a.x", "one", 1)
        store.put_json("b", "two", 2)
    with RunStore(tmp_path / "run", [StageInputs(r"a\..*", {"seed": 0}, {"weights": "1" * 64}), other]) as store:
        assert (store.done("a.x"), store.done("b")) == (set(), {"two"})
