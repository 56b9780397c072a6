"""``PipelineQuantizationConfig(quant_backend="vqcompress")`` packs while loading, without data."""

from __future__ import annotations

import json

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


def test_a_layer_that_no_code_fits_stays_dense(make_tiny_pipeline, tmp_path):
    pipeline, name = make_tiny_pipeline(), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pipeline.unet.get_submodule(name).weight.data.mul_(1e12)
    pipeline.save_pretrained(tmp_path / "dense")
    config = PipelineQuantizationConfig(
        quant_backend="vqcompress", quant_kwargs={"bits": 4, "method": "rtn"}, components_to_quantize=["unet"]
    )
    packed = vq_layers(DiffusionPipeline.from_pretrained(tmp_path / "dense", quantization_config=config).unet)
    assert len(packed) > 20
    assert name not in packed


@pytest.mark.feature("`modules_to_not_convert`", "UNet", "text encoder")
def test_named_layers_stay_dense(dense_folder):
    config = PipelineQuantizationConfig(
        quant_backend="vqcompress",
        quant_kwargs={"bits": 4, "method": "rtn", "modules_to_not_convert": ["to_q", "mid_block", "fc1"]},
        components_to_quantize=["unet", "text_encoder"],
    )
    pipeline = DiffusionPipeline.from_pretrained(dense_folder, quantization_config=config)
    packed = [*vq_layers(pipeline.unet), *vq_layers(pipeline.text_encoder)]
    assert any(name.endswith("to_k") for name in packed)
    assert any(name.endswith("fc2") for name in packed)
    assert not [name for name in packed if "to_q" in name or "mid_block" in name or "fc1" in name]


def test_a_component_gets_its_dense_budget(dense_folder):
    from diffusers import UNet2DConditionModel

    from vqcompress.integrations.config import VQCompressConfig

    config = VQCompressConfig(bits=4, method="rtn", dense_budget="all")
    unet = UNet2DConditionModel.from_pretrained(dense_folder / "unet", quantization_config=config)
    layers = vq_layers(unet).values()
    assert layers
    assert all(layer.__dict__["weight_source"] is not None for layer in layers)
    assert "dense_budget" not in str(unet.config.quantization_config.to_dict())


def test_a_config_says_what_it_asks_for():
    from vqcompress.integrations.config import VQCompressConfig

    asked = VQCompressConfig(bits=2.5, method="rtn", seed=3, modules_to_not_convert=["proj_out"])
    again = VQCompressConfig.from_dict(json.loads(asked.to_json_string()))
    assert again.to_dict() == asked.to_dict() == asked.to_diff_dict()
    assert asked.to_dict()["modules_to_not_convert"] == ["proj_out"]
    assert asked.quant_method.value == "vqcompress"


def test_unknown_keys_are_refused():
    from vqcompress.errors import CheckpointError
    from vqcompress.integrations.config import VQCompressConfig

    with pytest.raises(CheckpointError, match="bitz"):
        VQCompressConfig(bitz=3)
