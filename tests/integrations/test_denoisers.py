"""Transformer denoisers, and a component from a single file."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from vqcompress.errors import CheckpointError
from vqcompress.integrations.config import VQCompressConfig
from vqcompress.layers import vq_layers

SMALL = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}


def _dit():
    return DiTTransformer2DModel(**SMALL, num_embeds_ada_norm=10, norm_num_groups=4)


def _pixart():
    return PixArtTransformer2DModel(
        **SMALL, cross_attention_dim=32, caption_channels=32, use_additional_conditions=False, norm_num_groups=4
    )


def _sd3():
    return SD3Transformer2DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
    )


def _inputs(model, dtype):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    text = torch.randn(2, 5, 32, generator=generator).to(dtype)
    time = torch.tensor([3, 3])
    if isinstance(model, DiTTransformer2DModel):
        return {"hidden_states": sample, "timestep": time, "class_labels": torch.tensor([1, 2])}
    if isinstance(model, PixArtTransformer2DModel):
        kwargs = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        return {"hidden_states": sample, "timestep": time, "encoder_hidden_states": text, **kwargs}
    pooled = torch.randn(2, 32, generator=generator).to(dtype)
    return {"hidden_states": sample, "timestep": time, "encoder_hidden_states": text, "pooled_projections": pooled}


def _run(model):
    with torch.no_grad():
        return model(**_inputs(model, model.dtype)).sample


@pytest.fixture(params=[_dit, _pixart, _sd3], ids=["dit", "pixart", "sd3"])
def packed(request, pack_component):
    """A tiny transformer with every layer packed but its embedders and its output."""
    torch.manual_seed(0)
    return pack_component(request.param().eval(), ("pos_embed.proj", "proj_out", "proj_out_2"))


@pytest.mark.feature("float32, float16, bfloat16", "DiT")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_transformers_come_back_bit_for_bit(dtype, packed, tmp_path):
    packed.save_pretrained(tmp_path)
    loaded = type(packed).from_pretrained(tmp_path, torch_dtype=dtype)
    for name, layer in vq_layers(packed).items():
        assert torch.equal(vq_layers(loaded)[name].dense_weight(), layer.dense_weight()), name
    if dtype == torch.float32:  # `.to` casts position tables that loading leaves alone, packed or not
        assert torch.equal(_run(loaded), _run(packed))
    assert torch.isfinite(_run(loaded)).all()


@pytest.mark.feature("training a LoRA", "DiT")
def test_adapters_train_on_transformers(packed):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    adapted = get_peft_model(packed.requires_grad_(False), config)
    adapted(**_inputs(packed, torch.float32)).sample.square().mean().backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.feature("several LoRA adapters, switched and disabled without a trace", "DiT")
def test_adapter_files_with_scales(pack_component):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    packed, dense = pack_component(_sd3().eval(), ("pos_embed.proj", "proj_out")), _sd3()
    dense.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    state, bare = get_peft_model_state_dict(dense), _run(packed)
    for name in ("one", "two"):
        packed.load_lora_adapter(dict(state), prefix=None, adapter_name=name)
    packed.set_adapters(["one", "two"], [0.5, 0.25])
    both = _run(packed)
    assert not torch.allclose(both, bare)
    packed.set_adapters(["one"], [0.75])
    torch.testing.assert_close(_run(packed), both)
    packed.disable_lora()
    assert torch.equal(_run(packed), bare)


@pytest.mark.feature("`from_single_file`", "UNet")
@pytest.mark.skipif(
    diffusers.__version__ < "0.42", reason="diffusers asks the quantizer only since; bundles work with all"
)
def test_a_component_of_a_folder_from_its_weight_file(compressed_folder, tmp_path, run_unet):
    folder = compressed_folder / "unet"
    config = VQCompressConfig.from_dict(json.loads((folder / "config.json").read_text())["quantization_config"])
    file = folder / "diffusion_pytorch_model.safetensors"
    options = {"config": str(compressed_folder), "subfolder": "unet", "quantization_config": config}
    loaded = UNet2DConditionModel.from_single_file(str(file), **options)
    assert torch.equal(run_unet(loaded), run_unet(UNet2DConditionModel.from_pretrained(folder)))
    tensors = load_file(file)
    del tensors["vq_shared.book"]
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        UNet2DConditionModel.from_single_file(str(tmp_path / "broken.safetensors"), **options)


@pytest.mark.feature("`dequantize()`", "UNet")
def test_dequantizing_a_component_in_memory(compressed_folder, run_unet):
    unet = UNet2DConditionModel.from_pretrained(compressed_folder / "unet")
    expected = run_unet(unet)
    dense = unet.dequantize()
    assert not vq_layers(dense)
    assert "quantization_config" not in dense.config
    torch.testing.assert_close(run_unet(dense), expected)
