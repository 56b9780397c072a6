"""What `import vqcompress` offers: signatures that say what there is, results that are paths, plain data in."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import vqcompress
from tests.architectures import tiny_pipelines
from tests.conftest import FEW_LAYERS
from vqcompress.architectures import architecture_of
from vqcompress.progress import StageBars, _in_notebook, watched
from vqcompress.recipe import Recipe
from vqcompress.reports.folders import evaluation_set

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in vqcompress.__all__ if inspect.isfunction(getattr(vqcompress, name))]
FEW = {
    "method": "rtn", "bits": 4, "budget": "layer", "calibration": {"steps": 2, "count": 2, "height": 16, "width": 16},
    "ignore": FEW_LAYERS,
}  # fmt: skip

CLIENT = """
from pathlib import Path

import vqcompress

folder = vqcompress.quantize("shapes", Path("out"), bits=3, preset="fast", settings={"state_bits": 8}, progress=False)
bits: float = folder.bits
inside: Path = folder / "unet"
seconds: float = sum(folder.seconds.values())
tuned = vqcompress.finetune(folder.path, "tuned", model="shapes", steps=10)
gain: float = tuned.before - tuned.after
comparison = vqcompress.report("shapes", [folder, tuned], "report", count=4)
label: str = comparison.variants[0].label
images = vqcompress.generate(folder.path, ["a cat"], seeds=3, negative_prompt="a dog", loras=["style.safetensors:0.5"])
problems: list[str] = vqcompress.verify(folder.path)
packed: Path = vqcompress.bundle(folder.path, "one.safetensors")
recipe = vqcompress.Recipe.parse({"model": "shapes", "bits": 3})
python: str = vqcompress.env()["python"]
try:
    vqcompress.compare("shapes", "nowhere")
except vqcompress.VQCompressError as error:
    text: str = str(error)
"""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented_and_their_arguments_annotated(name: str) -> None:
    function = getattr(vqcompress, name)
    assert function.__doc__
    assert all(each.annotation is not each.empty for each in inspect.signature(function).parameters.values())


def test_report_takes_what_compare_takes() -> None:
    compared = dict(inspect.signature(vqcompress.compare).parameters)
    reported = dict(inspect.signature(vqcompress.report).parameters)
    assert reported.pop("output").default == "out/report"
    assert reported == compared


def test_every_recipe_key_is_an_argument_or_reaches_the_recipe() -> None:
    arguments = inspect.signature(vqcompress.quantize).parameters
    missing = {name for name in Recipe.model_fields if name not in arguments} - {"shared_codebooks"}
    assert not missing
    with pytest.raises(vqcompress.RecipeError, match="did you mean 'bits'"):
        vqcompress.quantize("shapes", "out", bitz=3)


def test_a_result_is_a_path_with_what_is_known_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_pipelines.sdxl().save_pretrained(tmp_path / "model")
    stages: list[str] = []
    with caplog.at_level(logging.INFO, "vqcompress"):
        made = vqcompress.quantize(
            tmp_path / "model", tmp_path / "out", progress=lambda stage, *_: stages.append(stage), **FEW
        )
    assert made == tmp_path / "out"
    assert os.fspath(made) == str(made) == str(tmp_path / "out")
    assert (made / "unet").is_dir()
    assert made.name == "out"
    assert isinstance(DiffusionPipeline.from_pretrained(made), DiffusionPipeline)
    found = vqcompress.inspect(made)
    assert (made.bits, made.bytes, made.layers) == (found["bits_per_weight"], found["bytes"], len(found["layers"]))
    assert set(made.seconds) == set(stages)
    assert all(seconds >= 0 for seconds in made.seconds.values())
    assert all(any(record.message.startswith(stage) for record in caplog.records) for stage in stages)


def test_prompts_are_a_list_and_a_recipe_is_plain_data(tmp_path: Path) -> None:
    options = {"recipe": {**FEW, "method": "gptq"}, "progress": False}
    made = [
        vqcompress.quantize(tiny_pipelines.sdxl(), tmp_path / str(number), prompts=prompts, **options)
        for number, prompts in enumerate((["a red cat", "a blue dog"], ["a red cat", "a blue dog"], ["one", "two"]))
    ]
    files = [(folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in made]
    assert files[0] == files[1] != files[2]
    for wrong in ([], [""], [1]):
        with pytest.raises(vqcompress.RecipeError, match="prompts"):
            vqcompress.quantize("shapes", tmp_path / "x", prompts=wrong)
        with pytest.raises(vqcompress.RecipeError, match="prompts"):
            evaluation_set(architecture_of(tiny_pipelines.sdxl()), wrong, 4)
    with pytest.raises(vqcompress.RecipeError, match="not int"):
        vqcompress.quantize("shapes", tmp_path / "x", recipe=3)


def test_a_numpy_weight_is_the_tensor_that_it_holds() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    settings = {"group_size": 16}
    from_numpy = vqcompress.quantize_weight(weight, method="rtn", bits=4, settings=settings)
    from_torch = vqcompress.quantize_weight(torch.from_numpy(weight), method="rtn", bits=4, settings=settings)
    assert from_numpy.spec == from_torch.spec
    assert all(torch.equal(from_numpy.tensors[key], value) for key, value in from_torch.tensors.items())
    for wrong, said in ((weight.tolist(), "not list"), (np.ones((4, 4), np.int32), "array of int32")):
        with pytest.raises(vqcompress.RecipeError, match=said):
            vqcompress.quantize_weight(wrong)
    with pytest.raises(vqcompress.RecipeError, match="did you mean 'group_size'"):
        vqcompress.quantize_weight(weight, method="rtn", bits=4, settings={"groupsize": 16})


def test_bars_are_drawn_where_somebody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    clock = watched(True)
    for done in range(1, 4):
        clock("encoding", done, 3, "layer")
    assert "encoding" in capsys.readouterr().err
    for quiet in (False, None):  # standard error is no terminal here
        watched(quiet)("encoding", 1, 1, "")
    assert not capsys.readouterr().err


def test_a_notebook_is_its_kernel_not_what_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    for found, watching in ((None, False), (SimpleNamespace(config={}), False), (shell, True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda found=found: found))
        assert _in_notebook() == watching


def test_a_stage_that_begins_again_gets_a_bar_again(capsys: pytest.CaptureFixture[str]) -> None:
    bars = StageBars()
    for done in (1, 2, 2, 1, 2, 2):
        bars("layer errors", done, 2, "")
    assert capsys.readouterr().err.count("100%") == 2


@pytest.mark.slow
def test_a_client_of_the_public_api_passes_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    skipped = (
        "[mypy-torch.*,diffusers.*,transformers.*,numba.*,scipy.*,sklearn.*,matplotlib.*]\nfollow_imports = skip\n"
    )
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\nignore_missing_imports = True\n{skipped}")
    command = (sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--follow-imports", "silent", "client.py")
    checked = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "client.py").write_text(f"{CLIENT}\nwrong: int = folder.bits\n")
    checked = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    assert "Incompatible types in assignment" in checked.stdout
