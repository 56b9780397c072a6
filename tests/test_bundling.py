"""A folder as one file: every byte comes back, and what is no bundle is left alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vqcompress.bundling import MARK, extract_bundle, read_bundle, write_bundle
from vqcompress.errors import CheckpointError


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline of two components, one in two shards of sizes that are no multiples of eight bytes."""
    root = tmp_path / "pipeline"
    for component in ("unet", "vae"):
        (root / component).mkdir(parents=True)
        (root / component / "config.json").write_text('{"_class_name": "Ünet"}')
    (root / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "A"], "vae": ["diffusers", "B"]}))
    save_file({"a": torch.arange(5, dtype=torch.int8)}, root / "unet" / "x-1.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.randn(3, 5).half()}, root / "unet" / "x-2.safetensors")
    save_file({"c": torch.randn(7)}, root / "vae" / "y.safetensors")
    return root


def test_every_byte_comes_back(folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(folder, tmp_path / "one.safetensors"))
    assert bundle is not None
    assert bundle.index["unet"] == ["diffusers", "A"]
    assert hashes(extract_bundle(bundle, tmp_path / "again")) == hashes(folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_component(folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(folder, tmp_path / "one.safetensors"))
    assert bundle is not None
    assert set(hashes(extract_bundle(bundle, tmp_path / "part", "vae"))) == {"vae/config.json", "vae/y.safetensors"}


def test_it_is_a_safetensors_file(folder: Path, tmp_path: Path) -> None:
    path = write_bundle(folder, tmp_path / "one.safetensors")
    with safe_open(path, "pt") as file:
        assert {key for key in file.keys() if not key.startswith("_fill")} == {"unet.a", "unet.b", "vae.c"}  # noqa: SIM118
        assert torch.equal(file.get_tensor("unet.a"), torch.arange(5, dtype=torch.int8))
        assert file.get_tensor("vae.c").shape == (7,)


def test_other_files_are_no_bundles(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    for path in (
        folder,
        tmp_path / "text.safetensors",
        tmp_path / "none.safetensors",
        folder / "vae" / "y.safetensors",
    ):
        assert read_bundle(path) is None


def test_a_bundle_that_is_cut_off_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write_bundle(folder, tmp_path / "one.safetensors")
    path.write_bytes(path.read_bytes()[:-16])
    with pytest.raises(CheckpointError, match="cut off"):
        read_bundle(path)


def _marked(path: Path, **change: object) -> Path:
    contents = {"version": 1, "texts": {}, "weights": [], **change}
    save_file({"x": torch.zeros(1)}, path, metadata={MARK: json.dumps(contents)})
    return path


def test_newer_bundles_and_names_that_lead_outside_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="update"):
        read_bundle(_marked(tmp_path / "newer.safetensors", version=2))
    with pytest.raises(CheckpointError, match="outside"):
        read_bundle(_marked(tmp_path / "evil.safetensors", texts={"../evil.txt": "x"}))
    assert not (tmp_path / "evil.txt").exists()


def test_what_cannot_be_bundled_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        write_bundle(folder / "unet", tmp_path / "one.safetensors")
    (folder / "unet" / "model.bin").write_bytes(b"\x80\x04\xff")
    with pytest.raises(CheckpointError, match="neither text nor safetensors"):
        write_bundle(folder, tmp_path / "one.safetensors")
    (tmp_path / "there.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="exists"):
        write_bundle(folder, tmp_path / "there.safetensors")
