"""``--device``, ``--dtype`` and ``--offload`` of every verb that computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open

from tests.placement.test_placement import ABSENT, NEEDS_ABSENT
from vqcompress.cli import placement_options
from vqcompress.cli.main import main
from vqcompress.placement import DTYPES, OFFLOADS

VERBS = {
    "quantize": ("quantize", "shapes", "-o", "OUT"),
    "quantize --dry-run": ("quantize", "shapes", "--dry-run"),
    "finetune": ("finetune", "FOLDER", "-o", "OUT"),
    "generate": ("generate", "shapes", "a red square", "-o", "OUT.png"),
    "report": ("report", "shapes", "FOLDER", "-o", "OUT"),
    "bake-lora": ("bake-lora", "shapes", "lora.safetensors", "-o", "OUT", "--bits", "3"),
}
FAST = ("--method", "rtn", "--budget", "layer", "--steps", "1")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def arguments_of(verb: str, folder: Path) -> list[str]:
    return [part.replace("OUT", str(folder / "out")).replace("FOLDER", str(folder)) for part in VERBS[verb]]


def refusal(found: Result) -> str:
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@NEEDS_ABSENT
@pytest.mark.parametrize("verb", VERBS)
def test_a_device_that_is_not_here_is_one_line_before_anything_is_loaded(verb: str, tmp_path: Path) -> None:
    line = refusal(invoke(*arguments_of(verb, tmp_path), "--device", str(ABSENT)))
    assert f"device '{ABSENT}' is not here" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_offloading_to_the_cpu_is_one_line(verb: str, tmp_path: Path) -> None:
    assert "offload 'group'" in refusal(invoke(*arguments_of(verb, tmp_path), "--device", "cpu", "--offload", "group"))


def test_a_dtype_that_is_none_is_refused(tmp_path: Path) -> None:
    found = invoke(*arguments_of("generate", tmp_path), "--dtype", "int8")
    assert found.exit_code == 2
    assert "'int8' is not one of" in found.stderr


def test_options_and_library_offer_the_same() -> None:
    assert (placement_options.DTYPES, placement_options.OFFLOADS) == (DTYPES, OFFLOADS)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed") / "out"
    found = invoke("quantize", "shapes-dit", "-o", str(folder), "--bits", "4", "--dtype", "float16", *FAST)
    assert found.exit_code == 0, found.output
    first = found.stdout.splitlines()[0]
    assert first.startswith("device: ")
    assert first.endswith("float16")
    return folder


def test_a_run_in_16_bits_ends_in_a_folder_like_any_other(compressed: Path) -> None:
    with safe_open(compressed / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"F16", "I8", "U8"}  # noqa: SIM118


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_generate_names_the_device_first(dtype: str, compressed: Path, tmp_path: Path) -> None:
    drawn = ["generate", str(compressed), "a red square", "-o", str(tmp_path / "a.png"), "--steps", "1"]
    found = invoke(*drawn, "--device", "cpu", "--dtype", dtype)
    assert found.exit_code == 0, found.output
    first = found.stdout.splitlines()[0]
    assert first.startswith("device: cpu (")
    assert first.endswith("bfloat16" if dtype == "bfloat16" else "float32")


def test_json_stays_json(compressed: Path, tmp_path: Path) -> None:
    found = invoke("generate", str(compressed), "a red square", "-o", str(tmp_path / "a.png"), "--steps", "1", "--json")
    expected = {"prompt": "a red square", "seed": 0, "file": str(tmp_path / "a.png")}
    assert json.loads(found.stdout)["images"] == [expected]


def test_report_in_16_bits(compressed: Path, tmp_path: Path) -> None:
    few = ("--count", "1", "--steps", "1", "-o", str(tmp_path / "report"), "--json")
    found = invoke("report", "shapes-dit", str(compressed), *few, "--dtype", "bfloat16")
    assert found.exit_code == 0, found.output
    assert 0 < json.loads(found.stdout)["variants"][0]["denoiser_error"] < 1
