"""Opening a model, and the one line that a mistake gets."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from vqcompress.architectures import ALIASES, open_pipeline
from vqcompress.architectures.single_file import SINGLE_FILE_FAMILIES, family_of
from vqcompress.embedded import EMBEDDED
from vqcompress.errors import ArchitectureError


def line(model: str | Path) -> str:
    with pytest.raises(ArchitectureError) as caught:
        open_pipeline(model)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(sdxl: DiffusionPipeline, tmp_path: Path) -> Path:
    sdxl.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("alias", ["sdxl", "sdxl-turbo", "sd15", "sd21", "pixart-alpha", "dit-xl-2", "lumina-next"])
def test_alias_that_is_nowhere_says_how_to_get_it(alias: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.perf_counter()
    text = line(alias)
    assert f"hf download {ALIASES[alias]}" in text
    assert time.perf_counter() - start < 10


def test_cached_model_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(repo: str, **options: object) -> str:
        assert (repo, options["local_files_only"], options["use_safetensors"]) == ("someone/model", True, True)
        return str(folder)

    monkeypatch.setattr(DiffusionPipeline, "download", cached)
    assert open_pipeline("someone/model").unet.dtype is torch.float32


def test_embedded_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "shapes", replace(EMBEDDED["shapes"], folder=str(folder)))
    assert open_pipeline("shapes").unet is not None
    monkeypatch.setitem(EMBEDDED, "shapes", replace(EMBEDDED["shapes"], folder="missing"))
    assert "python -m vqcompress.shapes.train" in line("shapes")


def test_unknown_names() -> None:
    assert "unknown model 'sdxxl': give an alias (sdxl," in line("sdxxl")
    assert "no such file or folder" in line("./nowhere/model")
    assert "no such file or folder" in line("nowhere/model.safetensors")


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    assert "has no model_index.json" in line(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert "cannot be read" in line(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    assert "could not be opened as a diffusers pipeline" in line(tmp_path)


def test_incomplete_folder(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "only as pickle" in line(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert "unet has no .safetensors weights" in line(folder)
    for path in (folder / "unet").iterdir():
        path.unlink()
    (folder / "unet").rmdir()
    assert "names 'unet'" in line(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "could not be opened" in line(folder)


def test_half_precision_folder(sdxl: DiffusionPipeline, tmp_path: Path) -> None:
    sdxl.save_pretrained(tmp_path / "half", variant="fp16")
    assert open_pipeline(tmp_path / "half").unet is not None


def test_single_files_are_told_by_their_keys(tmp_path: Path) -> None:
    for index, family in enumerate(SINGLE_FILE_FAMILIES):
        path = tmp_path / f"{index}.safetensors"
        save_file({family.key: torch.zeros(1), "model.diffusion_model.x": torch.zeros(1)}, path)
        assert family_of(path) == family
        text = line(path)
        assert family.pipeline in text
        assert f"hf download {family.config}" in text


def test_single_files_that_are_no_pipeline(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet.down.weight": torch.zeros(1)}, lora)
    assert "1 tensors, such as lora_unet.down.weight" in line(lora)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    assert "cannot be read as safetensors" in line(broken)
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"x")
    assert "not a .safetensors file" in line(pickled)
