"""DiT and SiT: parity with the authors' outputs, other configurations, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqcompress.models import from_official
from vqcompress.models.dit import DiT, SiT
from vqcompress.models.modulation import adaln_zero_

TINY = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("family", ["dit", "sit"])
def test_official_outputs(official_run, tolerance: float, family: str, call: int) -> None:
    run = official_run(family)
    model = from_official(family, run.config, run.weights)
    assert not model.training
    assert run.calls[call].deviation(model) <= tolerance


def latents(model: DiT, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (count, model.config.in_channels, model.config.input_size, model.config.input_size)
    return torch.randn(shape, generator=generator), torch.full((count,), 400.0), torch.arange(count)


@pytest.mark.parametrize(
    ("change", "channels"),
    [({"patch_size": 4}, 8), ({"learn_sigma": False}, 4), ({"mlp_ratio": 2.0, "depth": 1}, 8), ({"in_channels": 3}, 6)],
)
def test_other_configurations(change: dict, channels: int) -> None:
    torch.manual_seed(0)
    model = DiT(**TINY | change).eval()
    with torch.no_grad():
        out = model(*latents(model))
    assert out.shape == (2, channels, 8, 8)
    assert torch.isfinite(out).all()


def test_no_null_label_without_dropout() -> None:
    assert len(DiT(**TINY, class_dropout_prob=0.0).y_embedder.embedding_table.weight) == 5
    assert len(DiT(**TINY).y_embedder.embedding_table.weight) == 6


def test_sit_never_returns_variance() -> None:
    torch.manual_seed(0)
    with_variance, without = SiT(**TINY).eval(), SiT(**TINY, learn_sigma=False).eval()
    x, t, y = latents(with_variance)
    assert with_variance(x, t / 1000, y).shape == without(x, t / 1000, y).shape == x.shape


def test_guidance_extrapolates_three_channels() -> None:
    torch.manual_seed(0)
    model = DiT(**TINY).eval()
    x, t, y = latents(model)
    x, y = torch.cat([x[:1], x[:1]]), torch.tensor([1, 5])
    with torch.no_grad():
        plain, guided = model(x, t, y), model.forward_with_cfg(x, t, y, 4.0)
    pushed = plain[1, :3] + 4.0 * (plain[0, :3] - plain[1, :3])
    assert torch.allclose(guided[:, :3], pushed.expand(2, -1, -1, -1), atol=1e-5)
    assert torch.allclose(guided[:, 3:], plain[:, 3:], atol=1e-6)


def test_second_half_of_guided_batch_is_not_read() -> None:
    torch.manual_seed(0)
    model = DiT(**TINY).eval()
    x, t, y = latents(model)
    assert model.forward_with_cfg(x, t, y, 2.0).equal(model.forward_with_cfg(torch.cat([x[:1], -x[:1]]), t, y, 2.0))


def test_labels_drop_out_in_training_only() -> None:
    torch.manual_seed(0)
    embed = DiT(**TINY, class_dropout_prob=0.5).y_embedder
    labels = torch.zeros(64, dtype=torch.long)
    assert embed.train()(labels).unique(dim=0).shape[0] == 2
    assert embed.eval()(labels).unique(dim=0).shape[0] == 1


def test_adaln_zero_starts_at_zero() -> None:
    model = DiT(**TINY).eval()
    adaln_zero_(model)
    assert model(*latents(model)).abs().max() == 0


@pytest.mark.parametrize("cls", [DiT, SiT])
def test_save_and_load(tmp_path: Path, cls: type[DiT]) -> None:
    torch.manual_seed(0)
    model = cls(**TINY).eval()
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert torch.equal(model(*latents(model)), again(*latents(model)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_the_input(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = DiT(**TINY).eval().to(dtype)
    x, t, y = latents(model)
    assert model(x.to(dtype), t, y).dtype == dtype


def test_every_matrix_is_called() -> None:
    model = DiT(**TINY).eval()
    called = set()
    matrices = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    for part in matrices:
        part.register_forward_hook(lambda module, *_: called.add(module))
    model(*latents(model))
    assert called == set(matrices)
