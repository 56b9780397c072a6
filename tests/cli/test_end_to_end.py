"""The main job through the command line, on the embedded model: quantize, verify, inspect, generate, dequantize."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from vqcompress.cli.main import main

FEW = ("--count", "2", "--steps", "3", "--set", "state_bits=8")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "vq3"
    run("quantize", "shapes", "-o", str(out), "--json", *FEW)
    return out


def test_nothing_is_left_beside_the_folder(folder: Path) -> None:
    assert [p.name for p in folder.parent.iterdir()] == ["vq3"]


def test_verify_accepts_what_quantize_wrote(folder: Path) -> None:
    assert json.loads(run("verify", str(folder), "--json"))["problems"] == []


def test_inspect_counts_everything(folder: Path) -> None:
    found = json.loads(run("inspect", str(folder), "--json"))
    assert 2.8 < found["bits_per_weight"] <= 3.01
    assert found["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    layers = found["components"]["unet"]["layers"]
    assert len(layers) > 80
    assert {row["format"] for row in layers} == {"trellis", "dense"}
    assert set(found["components"]["unet"]["kept"]) >= {"conv_in", "conv_out"}


def test_another_seed_gives_other_bytes_and_the_same_seed_the_same(tmp_path: Path) -> None:
    seeds = {"first": "0", "again": "0", "other": "1"}
    folders = {name: tmp_path / name / "vq3" for name in seeds}  # the card bears the folder's name
    for name, seed in seeds.items():
        run("quantize", "shapes-dit", "-o", str(folders[name]), "--json", "--seed", seed, *FEW)
    found = {name: hashes(folder) for name, folder in folders.items()}
    assert found["again"] == found["first"]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert found["other"][weights] != found["first"][weights]


def test_generate_writes_a_grid(folder: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "grid.png", tmp_path / "kept.png"
    prompt = "three red squares on a gray background"
    run("generate", str(folder), prompt, "-o", str(out), "--steps", "4")
    assert np.asarray(Image.open(out)).std() > 0
    said = run("generate", str(folder), prompt, "-o", str(kept), "--steps", "4", "--dense-budget", "all")
    assert "decoded weights are kept" in said
    assert kept.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_file_is_found(folder: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    victim = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(victim.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    else:
        data[-1] ^= 1
    victim.write_bytes(data)
    result = CliRunner().invoke(main, ["verify", str(copy)])
    assert result.exit_code == 2
    assert "unet" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_dequantize_gives_a_dense_pipeline_of_the_same_weights(folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    run("dequantize", str(folder), "-o", str(tmp_path / "dense"), "--dtype", "float32")
    packed = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    dense = UNet2DConditionModel.from_pretrained(tmp_path / "dense", subfolder="unet", use_safetensors=True)
    name = "mid_block.attentions.0.proj_in"
    assert type(dense.get_submodule(name)).__name__ == "Linear"
    assert (packed.get_submodule(name).dense_weight() == dense.get_submodule(name).weight).all()


@pytest.mark.parametrize("method", ["gptq", "additive"])
def test_other_methods_take_the_same_path(tmp_path: Path, method: str) -> None:
    out = tmp_path / method
    run("quantize", "shapes-dit", "-o", str(out), "--method", method, "--json", "--count", "1", "--steps", "2")
    found = json.loads(run("inspect", str(out), "--json"))
    assert found["bits_per_weight"] < (3.6 if method == "gptq" else 3.2)
