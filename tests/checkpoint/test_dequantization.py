"""A dense folder of the same weights."""

from __future__ import annotations

import json

import torch
from diffusers import DiffusionPipeline

from vqcompress.checkpoint import dequantize
from vqcompress.layers import vq_layers


def test_dense_folder_has_the_decoded_weights(compressed_folder, compressed_pipeline, tmp_path, run_unet):
    output = dequantize(compressed_folder, tmp_path / "dense", dtype=torch.float32)
    dense = DiffusionPipeline.from_pretrained(output)
    assert not vq_layers(dense.unet)
    assert "quantization_config" not in json.loads((output / "unet" / "config.json").read_text())
    assert "quantization_config" not in json.loads((output / "text_encoder" / "config.json").read_text())
    for name, layer in vq_layers(compressed_pipeline.unet).items():
        assert torch.equal(dense.unet.get_submodule(name).weight, layer.dense_weight())
    for name, layer in vq_layers(compressed_pipeline.text_encoder).items():
        assert torch.equal(dense.text_encoder.get_submodule(name).weight, layer.dense_weight())
    torch.testing.assert_close(run_unet(dense.unet), run_unet(compressed_pipeline.unet))
    dense.unet.fuse_qkv_projections()
