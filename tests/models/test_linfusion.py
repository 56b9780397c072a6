"""LinFusion: parity with the authors' outputs, mounting from a checkpoint folder, saving, other UNets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError, UnsupportedError
from vqcompress.models import from_official
from vqcompress.models.linfusion import (
    DENOMINATOR_FLOOR,
    LinearAttention,
    LinFusionUNet2DConditionModel,
    linear_attention,
)
from vqcompress.models.presets import preset

FIXTURES = ("linfusion_sd15", "linfusion_sdxl")
PARAMETERS = {"linfusion-sd15": 909_182_404, "linfusion-sd21": 915_572_164, "linfusion-sdxl": 2_977_729_284}
MODULES = {"linfusion-sd15": 16, "linfusion-sd21": 16, "linfusion-sdxl": 70}


def base_of(run) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**run.config).eval()
    unet.load_state_dict(
        {name: t for name, t in run.weights.items() if ".to_q_." not in name and ".to_k_." not in name}
    )
    return unet


def checkpoint_of(run, folder: Path) -> Path:
    """The official layout, written from the mounted weights."""
    modules = json.loads((run.folder / "config.json").read_text())["linfusion_modules_list"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "LinFusion", "modules_list": modules}))
    tensors = {}
    for number, entry in enumerate(modules):
        prefix = f"{entry['module_name']}."
        own = {n.removeprefix(prefix): t for n, t in run.weights.items() if n.startswith(prefix)}
        tensors |= {f"{number}.{name}": tensor for name, tensor in own.items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("name", FIXTURES)
def test_official_outputs(official_run, tolerance: float, name: str, call: int) -> None:
    run = official_run(name)
    unet = from_official("linfusion", run.config, run.weights)
    assert not unet.training
    assert run.calls[call].deviation(unet) <= tolerance


def test_published_folder_mounts(official_run, tolerance: float) -> None:
    run = official_run("linfusion_sd15")
    mounted = LinFusionUNet2DConditionModel.from_base(base_of(run), run.folder / "linfusion")
    assert {name: t.shape for name, t in mounted.state_dict().items()} == {n: t.shape for n, t in run.weights.items()}
    assert all(tensor.equal(run.weights[name]) for name, tensor in mounted.state_dict().items())
    assert run.calls[0].deviation(mounted) <= tolerance


@pytest.mark.parametrize("name", FIXTURES)
def test_mounting_overwrites_base_attention_and_shares_the_rest(official_run, tmp_path: Path, name: str) -> None:
    run, base = official_run(name), base_of(official_run(name))
    for parameter_name, parameter in base.named_parameters():
        if ".attn1." in parameter_name:
            nn.init.zeros_(parameter)
    mounted = LinFusionUNet2DConditionModel.from_base(base, checkpoint_of(run, tmp_path / "linfusion"))
    with torch.no_grad():
        assert run.calls[1].deviation(mounted) == run.calls[1].deviation(
            from_official("linfusion", run.config, run.weights)
        )
    assert mounted.conv_in.weight.data_ptr() == base.conv_in.weight.data_ptr()


def test_saved_model_loads_bit_for_bit(official_run, tmp_path: Path) -> None:
    run = official_run("linfusion_sd15")
    unet = from_official("linfusion", run.config, run.weights)
    unet.save_pretrained(tmp_path)
    loaded = LinFusionUNet2DConditionModel.from_pretrained(tmp_path)
    assert loaded.config.linfusion_modules == unet.config.linfusion_modules
    with torch.no_grad():
        assert unet(**run.calls[0].inputs).sample.equal(loaded(**run.calls[0].inputs).sample)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    unet = preset(name).build()
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS[name]
    assert sum(isinstance(m, LinearAttention) for m in unet.modules()) == MODULES[name]


def test_every_matrix_of_the_attention_is_called(official_run) -> None:
    run, called = official_run("linfusion_sd15"), set()
    unet = from_official("linfusion", run.config, run.weights)
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    run.calls[0].deviation(unet)
    assert called == {n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def quadratic(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same attention from its N × N weights."""
    query, key = nn.functional.elu(query) + 1, nn.functional.elu(key) + 1
    weights = query @ key.transpose(-2, -1) / key.shape[-2]
    return weights @ value / (weights.sum(-1, keepdim=True) + DENOMINATOR_FLOOR)


def test_linear_form_is_the_quadratic_one() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 3, 50, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(linear_attention(query, key, value), quadratic(query, key, value))


def test_repeated_tokens_leave_the_output_unchanged() -> None:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(1, 6, 16, generator=generator)
    attention = LinearAttention(16, 2)
    with torch.no_grad():
        torch.testing.assert_close(attention(tokens.repeat(1, 5, 1))[:, :6], attention(tokens), rtol=1e-5, atol=1e-6)


def test_half_precision_stays_finite_at_many_tokens() -> None:
    ones = torch.full((1, 1, 16384, 4), 8.0, dtype=torch.float16)
    assert linear_attention(ones, ones, ones).isfinite().all()


def test_subset_of_modules_and_middle_width() -> None:
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    entry = {"module_name": "mid_block.attentions.0.transformer_blocks.0.attn1", "dim_n": 32, "heads": 4}
    unet = LinFusionUNet2DConditionModel(**config, linfusion_modules=[entry | {"projection_mid_dim": 7}]).eval()
    assert [n for n, m in unet.named_modules() if isinstance(m, LinearAttention)] == [entry["module_name"]]
    assert unet.get_submodule(entry["module_name"]).to_q_[0].out_features == 7
    with torch.no_grad():
        assert unet(torch.randn(1, 4, 8, 12), 5, torch.randn(1, 3, 12)).sample.isfinite().all()


def test_wrong_base_is_named(official_run) -> None:
    run = official_run("linfusion_sdxl")
    with pytest.raises(ArchitectureError, match=r"down_blocks\.0\.attentions\.0"):
        LinFusionUNet2DConditionModel.from_base(base_of(run), official_run("linfusion_sd15").folder / "linfusion")


def test_missing_and_unexpected_weights_are_listed(official_run) -> None:
    run = official_run("linfusion_sd15")
    weights = dict(run.weights)
    weights["stranger"] = weights.pop("conv_in.bias")
    with pytest.raises(ArchitectureError, match=r"missing: conv_in\.bias.*unexpected: stranger"):
        from_official("linfusion", run.config, weights)


def test_empty_folder_is_named(official_run, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"config\.json is missing"):
        LinFusionUNet2DConditionModel.from_base(base_of(official_run("linfusion_sd15")), tmp_path)


def test_masks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="unmasked"):
        LinearAttention(8, 2)(torch.zeros(1, 4, 8), attention_mask=torch.zeros(1, 4))
