"""Half-integer rates in a folder: planned within the budget, saved, verified, loaded, inspected, made dense again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vqcompress
from tests.architectures import tiny_pipelines
from vqcompress.checkpoint import dequantize, inspect, load, verify
from vqcompress.checkpoint.manifest import write_manifest
from vqcompress.layers import vq_layers

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    """A tiny folder at a budget between two whole rates."""
    folder = tmp_path_factory.mktemp("halves") / "packed"
    calibration = {"count": 1, "steps": 1, "height": 16, "width": 16}
    vqcompress.quantize(
        tiny_pipelines.sdxl(), folder, bits=2.5, budget="layer", calibration=calibration, settings={"state_bits": 8}
    )
    return folder


def halves(folder: Path) -> list[str]:
    """Names of the layers that have half-integer rates."""
    layers = json.loads((folder / "unet/config.json").read_text())["quantization_config"]["layers"]
    return [name for name, entry in layers.items() if entry.get("half_rates")]


def test_bytes_on_disk_are_within_the_budget(quantized):
    assert verify(quantized) == []
    names = halves(quantized)
    assert len(names) > 10
    rows = {row["name"]: row for row in inspect(quantized)["layers"]}
    assert all(2.3 < rows[name]["bits_per_weight"] <= 2.5 for name in names)


def test_loaded_layers_and_dense_ones_are_the_decoded_weights(quantized, tmp_path):
    dequantize(quantized, tmp_path / "dense")
    dense = load_file(tmp_path / "dense" / WEIGHTS)
    packed = vq_layers(load(quantized).unet)
    for name in halves(quantized):
        weight = packed[name].quantized_weight()
        assert weight.spec.half_rates
        torch.testing.assert_close(dense[f"{name}.weight"].float(), weight.decode(), rtol=1e-2, atol=1e-6)


def test_rates_that_do_not_fit_the_codes_are_named(quantized, tmp_path):
    copy = shutil.copytree(quantized, tmp_path / "copy")
    tensors = load_file(copy / WEIGHTS)
    key = next(f"{name}.rates" for name in halves(copy) if f"{name}.rates" in tensors)
    tensors[key] = tensors[key] ^ 1
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    write_manifest(copy)
    assert any(key.removesuffix(".rates") in problem for problem in verify(copy))
