"""Outliers on disk: positions and values that cannot be right are named, sound ones load bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vqcompress
from tests.architectures import tiny_pipelines
from vqcompress.checkpoint import load, verify
from vqcompress.checkpoint.manifest import write_manifest
from vqcompress.layers import vq_layers

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> tuple[Path, str]:
    """A tiny folder in which one layer has outliers, and the layer's name."""
    torch.manual_seed(0)
    pipeline = tiny_pipelines.sdxl()
    layer = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    with torch.no_grad():
        weight = pipeline.unet.get_submodule(layer).weight
        weight[3, 5], weight[7, 1] = 40 * weight.std(), -60 * weight.std()
    folder = tmp_path_factory.mktemp("outliers") / "packed"
    calibration = {"count": 1, "steps": 1, "height": 16, "width": 16}
    settings = {"state_bits": 8}
    vqcompress.quantize(pipeline, folder, bits=3.0, budget="layer", calibration=calibration, settings=settings)
    return folder, layer


def changed(quantized, tmp_path, change) -> list[str]:
    folder, layer = quantized
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / WEIGHTS)
    change(tensors, layer)
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    write_manifest(copy)
    return verify(copy)


def test_a_sound_folder_loads_with_its_outliers(quantized):
    folder, layer = quantized
    assert verify(folder) == []
    packed = vq_layers(load(folder).unet)[layer]
    assert packed.spec.outliers >= 2
    tensors = load_file(folder / WEIGHTS)
    assert torch.equal(packed.outlier_values, tensors[f"{layer}.outlier_values"])
    assert packed.outlier_positions.dtype == torch.int32
    values = packed.quantized_weight().decode()
    assert values[7, 1] == values.min()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.index_fill_(0, torch.tensor([0]), -1), "outside of"),
        (lambda t: t.index_fill_(0, torch.tensor([len(t) - 1]), 2**31 - 1), "outside of"),
        (lambda t: t.copy_(t.flip(0)), "do not rise"),
        (lambda t: t.copy_(t[:1].expand_as(t).clone()), "do not rise"),
    ],
    ids=["negative", "beyond", "falling", "equal"],
)
def test_wrong_positions_are_named(quantized, tmp_path, change, message):
    problems = changed(quantized, tmp_path, lambda tensors, layer: change(tensors[f"{layer}.outlier_positions"]))
    assert any(message in problem for problem in problems), problems


def test_values_that_are_not_finite_are_named(quantized, tmp_path):
    def change(tensors, layer):
        tensors[f"{layer}.outlier_values"][0] = torch.inf

    assert changed(quantized, tmp_path, change)
