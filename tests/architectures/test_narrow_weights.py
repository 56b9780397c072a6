"""16-bit weights held as they are give, bit for bit, what float32 copies of them give."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from vqcompress.architectures import open_pipeline
from vqcompress.architectures.narrow_weights import hold_narrow, narrow_dtypes


@pytest.fixture
def half(sdxl: DiffusionPipeline, tmp_path: Path) -> Path:
    folder = tmp_path / "half"
    copy.deepcopy(sdxl).to(torch.bfloat16).save_pretrained(folder)
    return folder


def layers_of(unet: torch.nn.Module) -> list[str]:
    return [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)][3:]


def test_only_a_denoiser_all_in_16_bits_is_narrow(half, tmp_path):
    assert narrow_dtypes(half) == {"unet": torch.bfloat16}
    pipeline = DiffusionPipeline.from_pretrained(half, dtype=torch.bfloat16)
    pipeline.unet.conv_in.float()
    pipeline.save_pretrained(tmp_path / "mixed")
    assert narrow_dtypes(tmp_path / "mixed") == {}


def test_the_same_bits_in_half_the_memory(half):
    wide, narrow = open_pipeline(half).unet, open_pipeline(half, narrow=True).unet
    hold_narrow(narrow, layers_of(narrow))
    held = [narrow.get_submodule(name).weight for name in layers_of(narrow)]
    assert {weight.dtype for weight in held} == {torch.bfloat16}
    assert narrow.dtype == torch.float32
    draw = torch.Generator().manual_seed(0)
    call = {
        "sample": torch.randn(1, 4, 8, 8, generator=draw),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(1, 12, 64, generator=draw),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 32, generator=draw), "time_ids": torch.ones(1, 6)},
    }
    with torch.no_grad():
        assert torch.equal(wide(**call).sample, narrow(**call).sample)
    assert [narrow.get_submodule(name).weight for name in layers_of(narrow)] == held


def test_a_layer_that_fails_gets_its_weight_back(half):
    narrow = open_pipeline(half, narrow=True).unet
    name = layers_of(narrow)[0]
    hold_narrow(narrow, [name])
    layer = narrow.get_submodule(name)
    weight = layer.weight
    with pytest.raises(RuntimeError):
        layer(torch.zeros(3, 3))
    assert layer.weight is weight


def test_weights_in_single_precision_are_left_alone(half):
    unet = open_pipeline(half).unet
    before = copy.deepcopy(unet.state_dict())
    hold_narrow(unet, layers_of(unet))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert not any(unet.get_submodule(name)._forward_pre_hooks for name in layers_of(unet))
