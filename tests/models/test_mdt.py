"""MDT v1 and v2: parity with the authors' outputs, the parts that never run, guidance, other configurations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError, UnsupportedError
from vqcompress.models import from_official
from vqcompress.models.mdt import MDT, MDTv1, MDTv2

TINY = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_classes": 5, "decode_layer": 2}


@pytest.mark.parametrize("call", [0, 1, 2])
def test_official_outputs(official_run, tolerance: float, call: int) -> None:
    run = official_run("mdtv2")
    model = from_official("mdt_v2", run.config, run.weights)
    assert not model.training
    assert run.calls[call].deviation(model) <= tolerance


def test_position_indices_are_optional_but_checked(official_run, tolerance: float) -> None:
    run = official_run("mdtv2")
    name = "de_blocks.0.attn.rel_pos_bias.relative_position_index"
    without = {n: t for n, t in run.weights.items() if not n.endswith("relative_position_index")}
    model = from_official("mdt_v2", run.config, without)
    assert run.calls[0].deviation(model) <= tolerance
    assert not any(n.endswith("relative_position_index") for n in model.state_dict())
    with pytest.raises(ArchitectureError, match=name.replace(".", r"\.")):
        from_official("mdt_v2", run.config, run.weights | {name: run.weights[name] + 1})


def random_model(cls: type[MDT], **change) -> MDT:
    torch.manual_seed(0)
    model = cls(**TINY | change).eval()
    for part in model.parameters():
        part.data.normal_(std=0.1)
    return model


def latents(model: MDT) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    size = model.config.input_size
    return torch.randn(2, 4, size, size, generator=generator), torch.full((2,), 400.0), torch.arange(2)


def silent_matrices(model: MDT) -> set[str]:
    matrices = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    called = set()
    for name, part in matrices.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    model(*latents(model))
    return matrices.keys() - called


@pytest.mark.parametrize("cls", [MDTv1, MDTv2])
def test_only_side_blocks_are_silent(cls: type[MDT]) -> None:
    silent = silent_matrices(random_model(cls))
    assert silent
    assert all(name.startswith("sideblocks.0.") for name in silent)


@pytest.mark.parametrize("cls", [MDTv1, MDTv2])
@pytest.mark.parametrize("change", [{"depth": 5}, {"learn_sigma": False}, {"input_size": 16, "patch_size": 4}])
def test_other_configurations(cls: type[MDT], change: dict) -> None:
    model = random_model(cls, **change)
    x, t, y = latents(model)
    out = model(x, t, y)
    assert out.shape == (2, 8 if model.config.learn_sigma else 4, *x.shape[2:])
    assert torch.isfinite(out).all()


def test_v1_loads_official_names() -> None:
    model = random_model(MDTv1)
    again = from_official("mdt_v1", TINY, model.state_dict())
    assert again(*latents(model)).equal(model(*latents(model)))


def test_v1_adds_positions_before_its_last_blocks() -> None:
    seen = {}
    models = [random_model(MDTv1), random_model(MDTv1)]
    models[1].decoder_pos_embed.data.zero_()
    for number, model in enumerate(models):
        for index, block in enumerate(model.blocks):
            block.register_forward_hook(lambda *a, key=(number, index): seen.__setitem__(key, (a[1][0], a[2])))
        model(*latents(model))
    assert seen[0, 1][1].equal(seen[1, 1][1])
    assert seen[0, 2][0].equal(seen[1, 2][0] + models[0].decoder_pos_embed)


def test_v2_halves() -> None:
    model = MDTv2(**TINY | {"depth": 7, "decode_layer": 3})
    assert [len(s) for s in (model.en_inblocks, model.en_outblocks, model.de_blocks)] == [2, 2, 3]


def test_masks_are_refused() -> None:
    model = random_model(MDTv2)
    with pytest.raises(UnsupportedError, match="enable_mask"):
        model(*latents(model), enable_mask=True)


def test_guidance_grows_with_less_noise() -> None:
    model = random_model(MDTv2)
    x, _, _ = latents(model)
    x, y = torch.cat([x[:1], x[:1]]), torch.tensor([1, 5])
    for time in (1000.0, 250.0, 0.0):
        t = torch.full((2,), time)
        plain, guided = model(x, t, y), model.forward_with_cfg(x, t, y, cfg_scale=5.0, scale_pow=2.0)
        scale = 1 + 4 * (1 - math.cos(math.pi * (1 - time / 1000) ** 2)) / 2
        pushed = plain[1, :3] + scale * (plain[0, :3] - plain[1, :3])
        assert torch.allclose(guided[0, :3], pushed, atol=1e-4)
    assert scale == 5.0
    assert model.forward_with_cfg(x, t, y).equal(plain)


@pytest.mark.parametrize("cls", [MDTv1, MDTv2])
def test_save_and_load(tmp_path: Path, cls: type[MDT]) -> None:
    model = random_model(cls)
    model.save_pretrained(tmp_path)
    assert cls.from_pretrained(tmp_path)(*latents(model)).equal(model(*latents(model)))


@pytest.mark.parametrize("cls", [MDTv1, MDTv2])
def test_matrices_are_registered_in_the_order_they_run(cls: type[MDT]) -> None:
    model, order = random_model(cls), []
    matrices = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, part in matrices.items():
        part.register_forward_hook(lambda *_, name=name: order.append(name))
    model(*latents(model))
    embedders = ("x_embedder", "t_embedder")
    assert [n for n in order if not n.startswith(embedders)] == [
        n for n in matrices if not n.startswith((*embedders, "sideblocks"))
    ]
