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
from vqcompress.architectures.file_header import FileHeader
from vqcompress.architectures.single_file import LAYOUTS, TEXT_ENCODERS, layout_of
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
    assert "unknown model 'sdxxl': did you mean sdxl" in line("sdxxl")
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


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_single_files_are_told_by_their_names(tmp_path: Path, prefix: str) -> None:
    for index, layout in enumerate(LAYOUTS):
        path = tmp_path / f"{index}.safetensors"
        shape = [1] * (layout.dimensions or 1)
        before = prefix if layout.component else ""
        save_file({f"{before}{key}": torch.zeros(shape) for key in layout.keys}, path)
        assert layout_of(FileHeader.read(path)) == layout


def test_a_single_file_says_where_the_rest_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    whole, alone = [layout for layout in LAYOUTS if not layout.component], LAYOUTS[3]
    for layout in whole:
        names = (*layout.keys, "model.diffusion_model.x", "first_stage_model.x", *TEXT_ENCODERS[layout.pipeline])
        tensors = {f"{name}y": torch.zeros(1) for name in names} | {key: torch.zeros(1) for key in layout.keys}
        save_file(tensors, tmp_path / "whole.safetensors")
        text = line(tmp_path / "whole.safetensors")
        assert layout.pipeline in text
        assert f"hf download {layout.config}" in text
    save_file({key: torch.zeros(1) for key in alone.keys}, tmp_path / "unet.safetensors")
    assert f"hf download {alone.config}" in line(tmp_path / "unet.safetensors")


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
