"""What is published names nothing of the machine that it was made on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

import vqcompress
from tests.conftest import tiny_stable_diffusion
from vqcompress.checkpoint.local_names import forget_local_names, public_name, without_local_names

CALIBRATION = {"count": 2, "steps": 1, "height": 8, "width": 8, "batch_size": 1}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user with an unusual name, and a model and prompts in it."""
    home = tmp_path / "home" / "ottilie-quux"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "ottilie-quux")
    tiny_stable_diffusion().save_pretrained(home / "models" / "mine")
    (home / "secret prompts.txt").write_text("a cat in our kitchen\nthe unreleased product\n")
    return home


def published_bytes(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("relative", [False, True])
def test_no_published_byte_names_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    model, prompts = home / "models" / "mine", home / "secret prompts.txt"
    if relative:
        monkeypatch.chdir(home)
        model, prompts = Path("models/mine"), Path("secret prompts.txt")
    folder = vqcompress.quantize(
        str(model), home / "out", method="rtn", bits=4, calibration={**CALIBRATION, "prompts": str(prompts)}
    )
    dense = vqcompress.dequantize(folder, home / "dense", dtype=torch.float32)
    words = ["ottilie", "quux", str(home), str(home.parent), "models/mine", "name_or_path", "kitchen", "unreleased"]
    words += [os.path.realpath(home), str(home).encode().hex()]
    for where in (folder, dense):
        assert len(published_bytes(where)) > 8
        for name, content in published_bytes(where):
            assert not [word for word in words if word.encode() in content], name
    recipe = yaml.safe_load((folder / "vqcompress_recipe.yaml").read_text())
    assert (recipe["model"], recipe["calibration"]["prompts"]) == ("mine", "secret prompts.txt")
    assert vqcompress.verify(folder) == []
    assert DiffusionPipeline.from_pretrained(dense, use_safetensors=True).unet is not None


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("stabilityai/sdxl-turbo", "stabilityai/sdxl-turbo"),
        ("hf:owner/prompts:text", "hf:owner/prompts:text"),
        ("shapes", "shapes"),
        ("/data/models/sdxl", "sdxl"),
        ("/data/models/sdxl/", "sdxl"),
        ("~/models/sdxl.safetensors", "sdxl.safetensors"),
        ("./sdxl", "sdxl"),
        ("../../jo/sdxl", "sdxl"),
    ],
)
def test_names_that_mean_the_same_everywhere_stay(name: str, public: str) -> None:
    assert public_name(name) == public
    recipe = {"model": name, "bits": 3, "calibration": {"prompts": name, "count": 2}}
    assert without_local_names(recipe) == {"model": public, "bits": 3, "calibration": {"prompts": public, "count": 2}}
    assert without_local_names({}) == {}


def test_tokens_that_look_like_paths_stay(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    kept = {"token": "/", "tag": "</s>", "n": ["/a/b"]}
    config = {"a": {"_name_or_path": "x", "file": str(tmp_path / "file.txt")}, **kept}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    forget_local_names(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"a": {}, **kept}
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == config


def test_paths_in_lists_go_and_tokens_stay_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the home of an unknown user is the root folder."""
    monkeypatch.setenv("HOME", "/")
    kept = {"token": "/", "tag": "/>", "prompt": "/imagine"}
    (tmp_path / "config.json").write_text(json.dumps({"files": [str(tmp_path), "/imagine"], **kept}))
    forget_local_names(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"files": ["/imagine"], **kept}
