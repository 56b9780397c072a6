"""Saving packed components that training recipes and adapters have changed; networks that start from packed ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetXSAdapter,
    FluxControlNetModel,
    MotionAdapter,
    SD3ControlNetModel,
    UNet2DConditionModel,
    UNetControlNetXSModel,
    UNetMotionModel,
)
from peft import LoraConfig, prepare_model_for_kbit_training
from torch import nn
from transformers import T5Config, T5EncoderModel

from tests.architectures import tiny_pipelines
from vqcompress.errors import UnsupportedError
from vqcompress.integrations.config import VQCompressConfig
from vqcompress.layers import make_dense, vq_layers


def t5() -> T5EncoderModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 100}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


@pytest.fixture(params=["UNet", "text encoder"])
def packed(request: pytest.FixtureRequest, make_tiny_unet, pack_component) -> Any:
    return pack_component(make_tiny_unet() if request.param == "UNet" else t5())


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): layer.dense_weight() for name, layer in vq_layers(network).items()}


def reopened(network: Any, folder: Path) -> Any:
    network.save_pretrained(folder)
    kind = UNet2DConditionModel if isinstance(network, UNet2DConditionModel) else T5EncoderModel
    return kind.from_pretrained(folder)


def agree(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert one
    assert all(value.equal(two[name]) for name, value in one.items())


@pytest.mark.feature("saving after `prepare_model_for_kbit_training`", "UNet", "text encoder")
@pytest.mark.parametrize("loaded", [False, True])
def test_saved_after_preparation_for_training(packed, tmp_path: Path, loaded: bool) -> None:
    model = reopened(packed, tmp_path / "first") if loaded else packed
    before = weights(model)
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    agree(weights(reopened(model, tmp_path / "again")), before)
    agree(weights(model), before)


@pytest.mark.feature("`dequantize()`, then saving", "UNet", "text encoder")
def test_saved_after_dequantizing(packed, tmp_path: Path) -> None:
    model = reopened(packed, tmp_path / "packed")
    before = weights(model)
    model.dequantize()
    dense = reopened(model, tmp_path / "dense")
    assert not vq_layers(dense)
    assert getattr(dense.config, "quantization_config", None) is None
    agree({name: dense.get_submodule(name).weight for name in before}, before)


@pytest.mark.feature("saving with an active LoRA", "UNet")
def test_saved_with_an_active_adapter(make_tiny_unet, pack_component, run_unet, tmp_path: Path) -> None:
    unet = pack_component(make_tiny_unet())
    bare, before = run_unet(unet), weights(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1", "conv_in"], init_lora_weights=False))
    adapted = run_unet(unet)
    opened = reopened(unet, tmp_path / "unet")
    agree(weights(opened), before)
    assert run_unet(opened).equal(bare)
    assert run_unet(unet).equal(adapted)
    assert "state_dict" not in vars(unet)


@pytest.mark.feature("`quantization_config` is an object on freshly quantized models", "UNet", "text encoder")
def test_the_config_is_an_object_before_it_was_ever_saved(packed, tmp_path: Path) -> None:
    fresh = (
        packed.config["quantization_config"] if isinstance(packed.config, dict) else packed.config.quantization_config
    )
    assert isinstance(fresh, VQCompressConfig)
    assert fresh.quant_method.value == "vqcompress"
    assert fresh["layers"].keys() == vq_layers(packed).keys()
    opened = reopened(packed, tmp_path / "m")
    loaded = (
        opened.config["quantization_config"] if isinstance(opened.config, dict) else opened.config.quantization_config
    )
    assert loaded.to_dict() == fresh.to_dict()


def unet_2d(pack_component) -> Any:
    return pack_component(tiny_pipelines.sd15().unet)


def same_start(made: nn.Module, expected: nn.Module) -> None:
    a, b = made.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    assert not vq_layers(made)
    copied = [key for key in a if "controlnet" not in key and "zero" not in key and "motion" not in key]
    shared = [key for key in copied if key.startswith(("down_blocks", "mid_block", "conv_in", "time_embedding"))]
    assert shared
    assert [key for key in shared if not a[key].equal(b[key])] == []


@pytest.mark.feature("`ControlNet.from_unet`, ControlNet-XS and AnimateDiff start from a dense copy", "UNet")
def test_networks_start_from_a_dense_copy(pack_component) -> None:
    unet = unet_2d(pack_component)
    dense = copy.deepcopy(unet)
    make_dense(dense)
    before = weights(unet)
    same_start(ControlNetModel.from_unet(unet), ControlNetModel.from_unet(dense))
    agree(weights(unet), before)
    blocks = (32, 64)
    motion = MotionAdapter(block_out_channels=blocks, motion_layers_per_block=1, motion_norm_num_groups=8)
    same_start(UNetMotionModel.from_unet2d(unet, motion), UNetMotionModel.from_unet2d(dense, motion))


@pytest.mark.feature("`ControlNet.from_unet`, ControlNet-XS and AnimateDiff start from a dense copy", "UNet")
def test_controlnet_xs_starts_from_a_dense_copy(pack_component) -> None:
    config = {key: value for key, value in tiny_pipelines.sd15().unet.config.items() if not key.startswith("_")}
    unet = pack_component(UNet2DConditionModel(**config | {"layers_per_block": 2}))  # it knows no other depth
    dense = copy.deepcopy(unet)
    make_dense(dense)
    control = ControlNetXSAdapter.from_unet(dense, size_ratio=0.5, num_attention_heads=2)
    made, expected = (UNetControlNetXSModel.from_unet(each, control) for each in (unet, dense))
    assert not vq_layers(made)
    assert made.base_conv_in.weight.equal(expected.base_conv_in.weight)
    a, b = made.state_dict(), expected.state_dict()
    assert [key for key in a if not a[key].equal(b[key])] == []


@pytest.mark.feature("`ControlNet.from_transformer` starts from a dense copy", "DiT")
def test_controlnets_of_transformers(pack_component) -> None:
    flux = pack_component(tiny_pipelines.flux().transformer)
    made = FluxControlNetModel.from_transformer(
        flux, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    name = "transformer_blocks.0.attn.to_q"
    assert made.get_submodule(name).weight.equal(flux.get_submodule(name).dense_weight())
    sd3 = pack_component(tiny_pipelines.sd3().transformer)
    made = SD3ControlNetModel.from_transformer(sd3, num_layers=1)
    assert made.get_submodule(name).weight.equal(sd3.get_submodule(name).dense_weight())


def test_an_offloaded_network_is_no_start(pack_component) -> None:
    unet = unet_2d(pack_component)
    with pytest.raises(UnsupportedError, match=r"offloaded UNet2DConditionModel.*remove_all_hooks"):
        ControlNetModel.from_unet(unet.to("meta"))
