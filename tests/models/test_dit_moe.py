"""DiT-MoE: parity with the authors' outputs and routing, both attention layouts, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vqcompress.models import from_official
from vqcompress.models.dit_moe import DiTMoE

TINY = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "num_experts": 4}


@pytest.mark.parametrize("call", [0, 1, 2])
def test_official_outputs_and_routing(official_run, tolerance: float, call: int) -> None:
    run = official_run("dit_moe")
    model = from_official("dit_moe", run.config, run.weights)
    routings = {}
    for name, part in model.named_modules():
        if name.endswith("moe.gate"):
            part.register_forward_hook(lambda *a, name=name: routings.__setitem__(name, a[2]))
    assert run.calls[call].deviation(model) <= tolerance
    assert len(routings) == run.config["depth"]
    for name, routing in routings.items():
        assert routing.expert.equal(run.auxiliary[f"call{call}.aux.{name}.topk_idx"])
        assert torch.allclose(routing.weight, run.auxiliary[f"call{call}.aux.{name}.topk_weight"], atol=2e-5)


def latents(model: DiTMoE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    size = model.config.input_size
    return torch.randn(2, 4, size, size, generator=generator), torch.full((2,), 0.4), torch.tensor([1, 5])


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("change", [{}, {"num_experts": 16}, {"num_experts_per_tok": 1}, {"learn_sigma": False}])
def test_other_configurations(flash: bool, change: dict) -> None:
    torch.manual_seed(0)
    model = DiTMoE(**TINY | change, use_flash_attn=flash).eval()
    x, t, y = latents(model)
    out = model(x, t, y)
    assert out.shape == (2, 8 if model.config.learn_sigma else 4, 8, 8)
    assert torch.isfinite(out).all()


def test_names_tell_the_attention_layout() -> None:
    torch.manual_seed(0)
    model = DiTMoE(**TINY, use_flash_attn=True).eval()
    assert {"Wqkv", "out_proj", "q_norm", "k_norm"} == {n for n, _ in model.blocks[0].attn.named_children()}
    again = from_official("dit_moe", TINY | {"use_flash_attn": False}, model.state_dict())
    assert again(*latents(model)).equal(model(*latents(model)))


def test_normed_attention_rounds_queries_and_keys_to_half() -> None:
    torch.manual_seed(0)
    attention = DiTMoE(**TINY, use_flash_attn=True).blocks[0].attn
    for norm in (attention.q_norm, attention.k_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 7, 32)
    q, k, v = attention.Wqkv(x).reshape(2, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)
    q, k = (norm(part).half().float() for norm, part in ((attention.q_norm, q), (attention.k_norm, k)))
    mixed = scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).reshape(2, 7, 32)
    assert torch.allclose(attention(x), attention.out_proj(mixed), atol=1e-6)


def test_training_gives_gradients_to_every_matrix() -> None:
    torch.manual_seed(0)
    model = DiTMoE(**TINY, class_dropout_prob=0.1)
    x, t, y = latents(model)
    model(x, t, y).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_save_and_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DiTMoE(**TINY).eval()
    model.save_pretrained(tmp_path)
    assert DiTMoE.from_pretrained(tmp_path)(*latents(model)).equal(model(*latents(model)))
