"""``PipelineQuantizationConfig(quant_backend="vqcompress")`` packs while loading, without data."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, UNet2DConditionModel

from vqcompress.layers import vq_layers


@pytest.fixture
def dense_folder(make_tiny_pipeline, tmp_path):
    """A saved dense pipeline."""
    make_tiny_pipeline().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.feature("`PipelineQuantizationConfig`, data-free while loading", "UNet", "text encoder")
def test_named_components_are_packed_and_the_rest_is_not(dense_folder, tmp_path, run_unet):
    config = PipelineQuantizationConfig(
        quant_backend="vqcompress",
        quant_kwargs={"bits": 4, "method": "rtn"},
        components_to_quantize=["unet", "text_encoder"],
    )
    pipeline = DiffusionPipeline.from_pretrained(dense_folder, quantization_config=config)
    dense = DiffusionPipeline.from_pretrained(dense_folder)
    packed = vq_layers(pipeline.unet)
    assert len(packed) > 20
    assert not {"conv_in", "conv_out"} & set(packed)
    assert vq_layers(pipeline.text_encoder)
    assert not vq_layers(pipeline.vae)
    error = (run_unet(pipeline.unet) - run_unet(dense.unet)).square().mean()
    assert error < 0.1 * run_unet(dense.unet).square().mean()
    pipeline.save_pretrained(tmp_path / "packed")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "packed" / "unet")
    assert torch.equal(run_unet(again), run_unet(pipeline.unet))


def test_unknown_keys_are_refused():
    from vqcompress.errors import CheckpointError
    from vqcompress.integrations.config import VQCompressConfig

    with pytest.raises(CheckpointError, match="bitz"):
        VQCompressConfig(bitz=3)
