"""PixArt-α: parity with the authors' outputs through diffusers' class, masks, the 1024-MS model, other MLP widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.errors import ArchitectureError
from vqcompress.models import from_official
from vqcompress.models.pixart import PixArt, name_map

TINY = {"input_size": 8, "hidden_size": 48, "depth": 2, "num_heads": 3, "caption_channels": 16, "model_max_length": 6}


@pytest.mark.parametrize("call", [0, 1, 2])
def test_official_outputs(official_run, tolerance: float, call: int) -> None:
    run = official_run("pixart")
    model = from_official("pixart", run.config, run.weights)
    assert not model.training
    assert run.calls[call].deviation(model) <= tolerance


def test_stored_positions_may_be_absent(official_run, tolerance: float) -> None:
    run = official_run("pixart")
    weights = {name: t for name, t in run.weights.items() if name != "pos_embed"}
    assert run.calls[0].deviation(from_official("pixart", run.config, weights)) <= tolerance


def test_null_caption_is_kept(official_run) -> None:
    run = official_run("pixart")
    model = from_official("pixart", run.config, run.weights)
    assert model.null_caption.equal(run.weights["y_embedder.y_embedding"])


def conditions(tokens: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return x, torch.tensor([300.0, 300.0]), torch.randn(2, 1, tokens, 16, generator=generator)


def test_masked_tokens_are_not_seen() -> None:
    torch.manual_seed(0)
    model = PixArt(**TINY).eval()
    x, t, y = conditions()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])[:, None, None]
    assert torch.allclose(model(x, t, y, mask), model(x, t, y[:, :, :4]), atol=1e-5)
    assert not torch.allclose(model(x, t, y, mask), model(x, t, y), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": 16, "lewei_scale": 2.0},
        {"patch_size": 4, "depth": 3},
        {"hidden_size": 32, "num_heads": 2, "pred_sigma": False},
        {"mlp_ratio": 3.0, "lewei_scale": 0.5, "depth": 1},
    ],
)
def test_other_configurations(change: dict) -> None:
    config = TINY | change
    torch.manual_seed(0)
    model = PixArt(**config).eval()
    again = from_official("pixart", config, official_names(model, sizes=False))
    side = config["input_size"]
    x, (_, t, y) = torch.randn(2, 4, side, side), conditions()
    with torch.no_grad():
        out = again(x, t, y)
    assert out.shape == (2, 8 if config.get("pred_sigma", True) else 4, side, side)
    with torch.no_grad():
        assert out.equal(model(x, t, y))
    assert sum(name.endswith("scale_shift_table") for name, _ in again.named_parameters()) == config["depth"] + 1


def official_names(model: PixArt, sizes: bool) -> dict[str, Tensor]:
    own = model.state_dict()
    return {name: torch.cat([own[t] for t in targets]) for name, targets in name_map(model.depth, sizes).items()}


@pytest.mark.parametrize("mlp_ratio", [4.0, 2.0])
def test_size_embedders_tell_the_ms_model(mlp_ratio: float) -> None:
    torch.manual_seed(0)
    config = TINY | {"mlp_ratio": mlp_ratio, "lewei_scale": 2.0}
    model = PixArt(**config, sizes=True).eval()
    weights = official_names(model, sizes=True)
    again = from_official("pixart", config | {"drop_path": 0.0, "window_block_indexes": []}, weights)
    x, t, y = conditions()
    info = {"img_hw": torch.tensor([[64.0, 96.0]] * 2), "aspect_ratio": torch.tensor([[0.67]] * 2)}
    wide = torch.cat([x, x[..., :4]], dim=3)
    assert model(wide, t, y, data_info=info).equal(again(wide, t, y, data_info=info))
    other = again(wide, t, y, data_info=info | {"aspect_ratio": torch.tensor([[1.5]] * 2)})
    assert not torch.allclose(other, again(wide, t, y, data_info=info), atol=1e-6)


def test_ms_model_asks_for_sizes() -> None:
    with pytest.raises(ArchitectureError, match="img_hw"):
        PixArt(**TINY, sizes=True)(*conditions())


def test_window_attention_is_refused(official_run) -> None:
    run = official_run("pixart")
    with pytest.raises(ArchitectureError, match="window attention"):
        from_official("pixart", run.config | {"window_block_indexes": [0]}, run.weights)


def test_guidance_and_noise_only() -> None:
    torch.manual_seed(0)
    model = PixArt(**TINY).eval()
    x, t, y = conditions()
    x = torch.cat([x[:1], x[:1]])
    plain, guided = model(x, t, y), model.forward_with_cfg(x, t, y, 4.5)
    assert torch.allclose(guided[0, :3], plain[1, :3] + 4.5 * (plain[0, :3] - plain[1, :3]), atol=1e-4)
    assert torch.allclose(model.forward_with_dpmsolver(x, t, y), plain[:, :4])
    assert PixArt(**TINY, pred_sigma=False).eval().forward_with_dpmsolver(x, t, y).shape == x.shape
