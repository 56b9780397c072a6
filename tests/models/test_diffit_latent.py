"""DiffiT in latent space: parity with the authors' outputs, guidance by size, stored indices, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models import from_official
from vqcompress.models.diffit_latent import DiffiTLatent

TINY = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_official_outputs(official_run, tolerance: float, call: int) -> None:
    run = official_run("diffit_latent")
    model = from_official("diffit_latent", run.config, run.weights)
    assert not model.training
    assert run.calls[call].deviation(model) <= tolerance


def test_position_indices_are_optional_but_checked(official_run, tolerance: float) -> None:
    run = official_run("diffit_latent")
    name = "blocks.1.attn.relative_position_index"
    without = {n: t for n, t in run.weights.items() if not n.endswith("relative_position_index")}
    model = from_official("diffit_latent", run.config, without)
    assert run.calls[0].deviation(model) <= tolerance
    assert not list(model.buffers())
    with pytest.raises(ArchitectureError, match=r"blocks\.1\.attn\.relative_position_index"):
        from_official("diffit_latent", run.config, run.weights | {name: run.weights[name].flip(0)})


def random_model(**change) -> DiffiTLatent:
    torch.manual_seed(0)
    model = DiffiTLatent(**TINY | change).eval()
    for block in model.blocks:
        block.attn.relative_position_bias_table.data.normal_()
    return model


def latents(model: DiffiTLatent) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    size = model.config.input_size
    x = torch.randn(1, 4, size, size, generator=generator)
    return torch.cat([x, x]), torch.full((2,), 400.0), torch.tensor([1, 5])


@pytest.mark.parametrize("change", [{"patch_size": 4}, {"learn_sigma": False}, {"mlp_ratio": 2.0}, {"input_size": 12}])
def test_other_configurations(change: dict) -> None:
    model = random_model(**change)
    x, t, y = latents(model)
    out = model(x, t, y)
    assert out.shape == (2, 8 if model.config.learn_sigma else 4, *x.shape[2:])
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("size", "scale"), [(32, 1 + 3 * (1 - torch.cos(torch.tensor(torch.pi * 0.6**4))) / 2), (36, 4)]
)
def test_large_latents_have_constant_guidance(size: int, scale: float) -> None:
    model = random_model(input_size=size, patch_size=4)
    x, t, y = latents(model)
    plain, guided = model(x, t, y), model.forward_with_cfg(x, t, y, cfg_scale=4.0)
    pushed = plain[1, :3] + scale * (plain[0, :3] - plain[1, :3])
    assert torch.allclose(guided[0, :3], pushed, atol=1e-5)


def test_time_reaches_attention_only_through_its_projection() -> None:
    model = random_model()
    for block in model.blocks:
        nn.init.zeros_(block.attn.qkv_temb.weight)
    x, t, y = latents(model)
    assert torch.allclose(model(x, t, y), model(x, t + 300, y), atol=1e-6)


def test_save_and_load(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    assert DiffiTLatent.from_pretrained(tmp_path)(*latents(model)).equal(model(*latents(model)))
