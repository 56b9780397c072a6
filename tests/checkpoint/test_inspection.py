"""Sizes are those of the bytes on disk."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from safetensors.torch import load_file

from vqcompress.checkpoint import inspect
from vqcompress.errors import CheckpointError
from vqcompress.layers import vq_layers


def test_bits_count_everything_stored_once(compressed_folder, compressed_pipeline):
    found = inspect(compressed_folder)
    parts = [compressed_pipeline.unet, compressed_pipeline.text_encoder]
    layers = [layer.quantized_weight() for part in parts for layer in vq_layers(part).values()]
    shared = sum(part.vq_shared.book.nbytes for part in parts)
    weights = sum(math.prod(layer.shape) for layer in layers)
    assert found["bits_per_weight"] == pytest.approx(8 * (sum(layer.nbytes for layer in layers) + shared) / weights)
    assert found["bytes"] == sum(path.stat().st_size for path in compressed_folder.rglob("*") if path.is_file())
    assert len(found["layers"]) == len(layers)
    assert found["layers"] == [row for part in found["components"].values() for row in part["layers"]]
    assert set(found["components"]) == {"unet", "text_encoder"}


def test_rows_are_the_layers(compressed_folder, compressed_pipeline):
    rows = {row["name"]: row for row in inspect(compressed_folder)["layers"] if row["component"] == "unet"}
    for name, layer in vq_layers(compressed_pipeline.unet).items():
        weight = layer.quantized_weight()
        assert rows[name]["bytes"] == weight.nbytes
        assert rows[name]["bits_per_weight"] == pytest.approx(weight.bits_per_weight)
        assert rows[name]["shape"] == list(weight.shape)
        assert rows[name]["format"] == weight.spec.format


def test_layers_left_dense_by_a_budget_share_its_bits(compressed_folder, tmp_path):
    folder = shutil.copytree(compressed_folder, tmp_path / "copy")
    config = folder / "unet" / "config.json"
    data = json.loads(config.read_text())
    data["quantization_config"]["dense"] = {"conv_in": "decides the output"}
    data["quantization_config"]["kept"] = {"conv_out": "by rule"}
    config.write_text(json.dumps(data))
    before, after = inspect(compressed_folder)["components"]["unet"], inspect(folder)["components"]["unet"]
    (row,) = [row for row in after["layers"] if row["format"] == "dense"]
    assert (row["name"], row["bits_per_weight"]) == ("conv_in", 32)
    assert after["packed_bytes"] == before["packed_bytes"] + row["bytes"]
    assert after["bits_per_weight"] > before["bits_per_weight"]
    assert after["component_bits_per_weight"] == pytest.approx(before["component_bits_per_weight"])
    assert after["kept"] == {"conv_out": "by rule"}


def test_whole_component_counts_dense_tensors(compressed_folder):
    part = inspect(compressed_folder)["dense_components"]["vae"]
    stored = load_file(compressed_folder / "vae" / "diffusion_pytorch_model.safetensors").values()
    assert part["component_bits_per_weight"] == 32
    assert part["weights"] == sum(tensor.numel() for tensor in stored)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        inspect(tmp_path)
