"""Every way in which a folder can be wrong is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcompress.checkpoint import load, verify
from vqcompress.checkpoint.manifest import write_manifest
from vqcompress.errors import CheckpointError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(compressed_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(compressed_folder, tmp_path / "copy")


def _layer(folder, kind: str) -> str:
    layers = json.loads((folder / "unet/config.json").read_text())["quantization_config"]["layers"]
    return next(name for name, entry in layers.items() if entry["format"] == kind)


def _change(folder, change) -> list[str]:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_manifest(folder)
    return verify(folder)


def test_a_sound_folder_has_no_problems(compressed_folder, draw, compressed_pipeline):
    assert verify(compressed_folder) == []
    loaded = load(compressed_folder)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), draw(compressed_pipeline))


def test_one_flipped_bit_is_noticed(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    problems = verify(folder)
    assert len(problems) == 1
    assert WEIGHTS in problems[0]
    assert "SHA-256" in problems[0]
    with pytest.raises(CheckpointError, match="not sound"):
        load(folder)


def test_truncated_missing_and_unlisted_files_are_noticed(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    (folder / "README.md").unlink()
    (folder / "unet" / "extra.bin").write_bytes(b"pickle")
    problems = "\n".join(verify(folder))
    assert "the manifest says" in problems
    assert "cannot be read" in problems
    assert "README.md: is missing" in problems
    assert "extra.bin: is not in the manifest" in problems


def test_values_that_are_not_finite_are_noticed(folder):
    key = _layer(folder, "trellis") + ".scale"
    problems = _change(folder, lambda tensors: tensors[key].fill_(float("nan")))
    assert problems == [f"unet/{key}: holds values that are not finite"]


def test_tensors_that_differ_from_the_config_are_noticed(folder):
    layer = _layer(folder, "scalar")

    def change(tensors):
        tensors[f"{layer}.group_scale"] = tensors[f"{layer}.group_scale"][:-1].clone()
        del tensors[f"{layer}.group_zero"]

    problems = _change(folder, change)
    assert any("the config says" in problem for problem in problems)
    assert any("group_zero: is missing" in problem for problem in problems)


def test_rates_that_do_not_fit_the_codes_are_noticed(folder):
    key = _layer(folder, "trellis") + ".rates"
    assert any("bytes of codes" in problem for problem in _change(folder, lambda tensors: tensors[key].fill_(0)))


def test_a_config_of_another_model_is_noticed(folder):
    path = folder / "unet/config.json"
    config = json.loads(path.read_text())
    config["cross_attention_dim"] = 48
    path.write_text(json.dumps(config))
    write_manifest(folder)
    assert any("another size" in problem for problem in verify(folder))


def test_newer_formats_and_strange_folders_are_refused(folder, tmp_path):
    path = folder / "unet/config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["format_version"] = 99
    path.write_text(json.dumps(config))
    write_manifest(folder)
    assert any("update vqcompress" in problem for problem in verify(folder))
    assert "no vqcompress_manifest.json" in verify(tmp_path)[0]
    (folder / "vqcompress_manifest.json").write_text("[]")
    assert "cannot be read" in verify(folder)[0]
