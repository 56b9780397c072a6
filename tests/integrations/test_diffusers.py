"""diffusers loads and saves compressed pipelines as if they were ordinary ones."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import vqcompress
from vqcompress.errors import CheckpointError
from vqcompress.layers import describe, vq_layers

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _same_state(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.feature("`DiffusionPipeline.from_pretrained`, bit for bit", "UNet", "text encoder")
def test_pipeline_comes_back_bit_for_bit(compressed_pipeline, compressed_folder, draw):
    loaded = DiffusionPipeline.from_pretrained(compressed_folder)
    loaded.set_progress_bar_config(disable=True)
    assert vq_layers(loaded.unet).keys() == vq_layers(compressed_pipeline.unet).keys()
    assert _same_state(loaded.unet, compressed_pipeline.unet)
    assert _same_state(loaded.text_encoder, compressed_pipeline.text_encoder)
    assert torch.equal(draw(loaded), draw(compressed_pipeline))


@pytest.mark.feature("float32, float16, bfloat16", "UNet")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_exact_at_every_load_dtype(dtype, compressed_pipeline, compressed_folder, run_unet):
    unet = UNet2DConditionModel.from_pretrained(compressed_folder / "unet", torch_dtype=dtype)
    assert unet.dtype == dtype
    for name, layer in vq_layers(unet).items():
        expected = vq_layers(compressed_pipeline.unet)[name]
        assert torch.equal(layer.dense_weight(), expected.dense_weight()), name
    assert torch.equal(run_unet(unet), run_unet(compressed_pipeline.unet.to(dtype)))


@pytest.mark.feature("`pipe.to(dtype)`", "UNet", "text encoder")
def test_casting_a_loaded_pipeline_equals_loading_in_that_dtype(compressed_folder, run_unet):
    pipeline = DiffusionPipeline.from_pretrained(compressed_folder).to(torch.bfloat16)
    direct = UNet2DConditionModel.from_pretrained(compressed_folder / "unet", torch_dtype=torch.bfloat16)
    assert torch.equal(run_unet(pipeline.unet), run_unet(direct))
    assert pipeline.text_encoder.dtype == torch.bfloat16


@pytest.mark.feature("`save_pretrained` writes the same format back", "UNet")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_pretrained_writes_the_same_format_back(dtype, compressed_folder, tmp_path, run_unet):
    unet = UNet2DConditionModel.from_pretrained(compressed_folder / "unet", torch_dtype=dtype)
    unet.save_pretrained(tmp_path)
    before, after = load_file(compressed_folder / "unet" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    packed = [f"{name}.{key}" for name, layer in vq_layers(unet).items() for key in layer.state_dict() if key != "bias"]
    packed.append("vq_shared.book")
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in packed)
    configs = [json.loads((path / "config.json").read_text()) for path in (compressed_folder / "unet", tmp_path)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    again = UNet2DConditionModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert torch.equal(run_unet(again), run_unet(unet))


@pytest.mark.feature("shards", "UNet")
def test_shards(compressed_pipeline, tmp_path, run_unet):
    compressed_pipeline.unet.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(run_unet(loaded), run_unet(compressed_pipeline.unet))


def test_a_swapped_component_saves_its_description(compressed_pipeline, tmp_path):
    compressed_pipeline.unet.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == json.loads(json.dumps(describe(compressed_pipeline.unet)))
    assert saved["quant_method"] == "vqcompress"


@pytest.mark.feature("`device_map`", "UNet")
@pytest.mark.parametrize("device_map", [{"": "cpu"}, "cpu", "auto"])
def test_device_maps(device_map, compressed_pipeline, compressed_folder, run_unet):
    unet = UNet2DConditionModel.from_pretrained(compressed_folder / "unet", device_map=device_map)
    assert torch.equal(run_unet(unet), run_unet(compressed_pipeline.unet))


@pytest.mark.feature("disk offload", "UNet")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_disk_offload(dtype, compressed_pipeline, compressed_folder, tmp_path, run_unet):
    away = ("mid_block", "up_blocks", "vq_shared")
    children = [name for name, _ in compressed_pipeline.unet.named_children()]
    unet = UNet2DConditionModel.from_pretrained(
        compressed_folder / "unet",
        device_map={name: "disk" if name in away else "cpu" for name in children},
        offload_folder=str(tmp_path),
        torch_dtype=dtype,
    )
    assert unet.mid_block.attentions[0].proj_in.weight.device.type == "meta"
    assert torch.equal(run_unet(unet, dtype), run_unet(compressed_pipeline.unet.to(dtype)))


@pytest.mark.feature("missing tensors are refused", "UNet")
@pytest.mark.parametrize("lost", ["scale", "weight", "vq_shared.book", "rates"])
def test_missing_tensors_are_refused(lost, compressed_folder, tmp_path):
    shutil.copytree(compressed_folder / "unet", tmp_path / "unet")
    tensors = load_file(tmp_path / "unet" / WEIGHTS)
    layers = json.loads((tmp_path / "unet" / "config.json").read_text())["quantization_config"]["layers"]
    trellis = next(name for name, entry in layers.items() if entry["format"] == "trellis")
    del tensors[lost if "." in lost else f"{trellis}.{lost}"]
    save_file(tensors, tmp_path / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match="missing"):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet")


@pytest.mark.feature("newer formats are refused", "UNet")
@pytest.mark.parametrize(
    ("change", "message"),
    [({"format_version": 2}, "update vqcompress"), ({"surprise": 1}, "surprise")],
)
def test_newer_configs_are_refused(change, message, compressed_folder, tmp_path):
    shutil.copytree(compressed_folder / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet")


@pytest.mark.feature("fusing projections is refused, with the alternative", "UNet")
def test_fusing_is_refused_with_the_way_out(compressed_folder):
    unet = UNet2DConditionModel.from_pretrained(compressed_folder / "unet")
    for fuse in (unet.fuse_qkv_projections, unet.fuse_lora):
        with pytest.raises(vqcompress.UnsupportedError, match="vqcompress dequantize"):
            fuse()
