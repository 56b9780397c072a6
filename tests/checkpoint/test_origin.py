"""Folders and the models that they were made from, or were not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

import vqcompress
from tests.test_expert_stacks import NAMES, network
from vqcompress.checkpoint.origin import check_files, check_network
from vqcompress.errors import CheckpointError, VQCompressError
from vqcompress.expert_stacks import unstack
from vqcompress.layers import describe, swap
from vqcompress.quantizers import quantize_weight

WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def packed(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet and the first text encoder, without calibration."""
    folder = tmp_path_factory.mktemp("packed") / "out"
    components = ("unet", "text_encoder")
    return Path(vqcompress.quantize(str(tiny_sdxl), folder, method="rtn", bits=4, components=components))


@pytest.fixture
def original(tiny_sdxl: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sdxl, tmp_path / "original")


def renamed(path: Path, old: str, new: str) -> None:
    save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)


def test_the_original_fits(packed: Path, original: Path) -> None:
    check_files(packed, original, "mine", "advice")
    unet = DiffusionPipeline.from_pretrained(original).unet
    check_network(packed, unet, "unet", "mine", "advice")


def test_names_that_libraries_change_on_loading_say_nothing(packed: Path, original: Path) -> None:
    renamed(original / "text_encoder" / TEXT_WEIGHTS, "encoder.", "text_model.encoder.")
    renamed(original / "unet" / WEIGHTS, "to_out.0.", "proj_attn.")
    check_files(packed, original, "mine", "advice")


def test_files_that_are_not_there_say_nothing(packed: Path, original: Path, tmp_path: Path) -> None:
    (original / "unet" / WEIGHTS).unlink()
    shutil.rmtree(original / "text_encoder")
    check_files(packed, original, "mine", "advice")
    check_files(packed, tmp_path / "owner" / "name", "mine", "advice")


def test_a_layer_of_another_shape_is_refused(packed: Path, original: Path) -> None:
    path = original / "unet" / WEIGHTS
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    save_file(tensors | {name: torch.zeros(3, 5)}, path)
    with pytest.raises(VQCompressError, match=f"another model than mine.*{name.removesuffix('.weight')}.*; advice"):
        check_files(packed, original, "mine", "advice")


def test_a_network_of_other_names_is_refused(packed: Path, original: Path) -> None:
    path = original / "unet" / WEIGHTS
    save_file({f"layers.{name}": tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(VQCompressError, match="another model than mine"):
        check_files(packed, original, "mine", "advice")


@pytest.mark.parametrize("other", [nn.Linear(3, 5), nn.Sequential()])
def test_a_network_without_the_layers_is_refused(packed: Path, other: nn.Module) -> None:
    with pytest.raises(VQCompressError, match=r"another model than mine.*in unet; advice"):
        check_network(packed, other, "unet", "mine", "advice")
    with pytest.raises(VQCompressError, match="which has a transformer; advice"):
        check_network(packed, other, "transformer", "mine", "advice")


def test_a_config_that_cannot_be_read_is_named(packed: Path, original: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(packed, tmp_path / "broken")
    (broken / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_files(broken, original, "mine", "advice")


def test_stacked_experts_are_looked_at_one_by_one(tmp_path: Path) -> None:
    original, model = network(), network()
    unstack(model, NAMES)
    layers = dict(model.named_modules())
    swap(model, {name: quantize_weight(layers[name].weight.detach(), method="rtn", bits=4) for name in NAMES})
    folder = tmp_path / "out"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "Any"]}))
    (folder / "transformer" / "config.json").write_text(json.dumps({"quantization_config": describe(model)}))
    check_network(folder, original, "transformer", "mine", "advice")
    original["experts"].down_proj = nn.Parameter(torch.zeros(3, 48, 31))
    with pytest.raises(VQCompressError, match=r"no layer experts\.down_proj\.0"):
        check_network(folder, original, "transformer", "mine", "advice")
