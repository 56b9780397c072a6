"""Folders that an earlier state wrote load bit for bit: `make_old_folders` says which, and by what recipes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vqcompress
from tests.checkpoint.make_old_folders import KEEP, RECIPES, decoded, output, sha256
from vqcompress.bundling import extract_bundle, read_bundle
from vqcompress.checkpoint import RECIPE_NAME, read_layer_table
from vqcompress.recipe import Recipe

ARCHIVE = Path(__file__).parent / "old_folders.tar.xz"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive; read only."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, Any]:
    """What the state that wrote them got from each."""
    return json.loads((home / "expected.json").read_text())


def check(pipeline: Any, expected: dict[str, Any]) -> None:
    """Assert the same weights, bit for bit, and the same output but for the machine's order of sums."""
    assert decoded(pipeline) == expected["weights"]
    torch.testing.assert_close(torch.tensor(output(pipeline)), torch.tensor(expected["output"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*RECIPES, "bundle.safetensors"])
def test_loading_checks_and_gives_the_same_weights(home: Path, expected: dict[str, Any], name: str) -> None:
    check(vqcompress.load(home / name), expected[name])


@pytest.mark.parametrize("name", RECIPES)
def test_plain_diffusers_gives_the_same_weights(home: Path, expected: dict[str, Any], name: str) -> None:
    check(DiffusionPipeline.from_pretrained(home / name), expected[name])


@pytest.mark.parametrize("name", RECIPES)
def test_they_are_sound_and_their_sizes_are_read(home: Path, expected: dict[str, Any], name: str) -> None:
    assert vqcompress.verify(home / name) == []
    found = vqcompress.inspect(home / name)
    assert {f"{row['component']}.{row['name']}" for row in found["layers"]} == expected[name]["weights"].keys()
    assert {f"{row.component}.{row.layer}" for row in read_layer_table(home / name)} == expected[name]["weights"].keys()


@pytest.mark.parametrize("name", RECIPES)
def test_made_dense_they_hold_the_same_weights(home: Path, expected: dict[str, Any], name: str, tmp_path: Path) -> None:
    dense = DiffusionPipeline.from_pretrained(
        vqcompress.dequantize(home / name, tmp_path / "dense", dtype=torch.float32)
    )
    layers = {key: key.split(".", 1) for key in expected[name]["weights"]}
    weights = {key: getattr(dense, part).get_submodule(layer).weight for key, (part, layer) in layers.items()}
    assert {key: sha256(weight) for key, weight in weights.items()} == expected[name]["weights"]


def test_a_bundle_holds_the_folder_byte_for_byte(home: Path, tmp_path: Path) -> None:
    bundle = read_bundle(home / "bundle.safetensors")
    assert bundle is not None
    extract_bundle(bundle, tmp_path / "out")
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(home / "trellis_gains") for path in (home / "trellis_gains").rglob("*") if path.is_file()
    }
    assert all((tmp_path / "out" / file).read_bytes() == (home / "trellis_gains" / file).read_bytes() for file in files)


@pytest.mark.parametrize("name", RECIPES)
def test_their_recipes_are_still_recipes(home: Path, name: str) -> None:
    recipe = Recipe.read(home / name / RECIPE_NAME)
    assert recipe.method == RECIPES[name]["method"]
    assert recipe == Recipe.parse({"model": recipe.model, **RECIPES[name]})


def test_a_recipe_that_keeps_layers_says_why(home: Path) -> None:
    assert Recipe.read(home / "trellis_gains" / RECIPE_NAME).ignore == KEEP
    kept = vqcompress.inspect(home / "trellis_gains")["components"]["unet"]["kept"]
    assert {reason for name, reason in kept.items() if name.endswith("ff.net.2")} == {"kept for comparison"}
