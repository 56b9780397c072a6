"""Experts: the sum over all of them as the oracle, rows seen by hooks, gradients, the balance loss."""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.models.mixture import Mixture, Router, balance_loss


def tiny() -> tuple[Mixture, Tensor]:
    torch.manual_seed(0)
    return Mixture(8, hidden=16, shared_hidden=12, experts=4, chosen=2).eval(), torch.randn(2, 5, 8)


def test_equals_the_dense_sum() -> None:
    mixture, x = tiny()
    probabilities = torch.softmax(x @ mixture.gate.weight.T, dim=-1)
    kept = torch.where(probabilities >= probabilities.topk(2).values[..., -1:], probabilities, 0)
    dense = sum(kept[..., e, None] * expert(x) for e, expert in enumerate(mixture.experts))
    assert torch.allclose(mixture(x), dense + mixture.shared_experts(x), atol=1e-6)


def test_hooks_see_each_experts_rows() -> None:
    mixture, x = tiny()
    rows = {}
    for number, expert in enumerate(mixture.experts):
        expert.gate_proj.register_forward_pre_hook(lambda _, args, n=number: rows.__setitem__(n, len(args[0])))
    mixture(x)
    assert rows == {n: c for n, c in enumerate(mixture.gate(x.flatten(0, 1)).expert.flatten().bincount().tolist()) if c}


def test_expert_without_rows_is_not_called() -> None:
    mixture, x = tiny()
    mixture.gate.weight.data = torch.zeros(4, 8)
    mixture.gate.weight.data[:2] = 5 * x[0, 0]
    mixture.experts[3].register_forward_hook(lambda *_: (_ for _ in ()).throw(AssertionError("called")))
    assert torch.isfinite(mixture(x[:1, :1])).all()


def test_gradients_reach_chosen_experts_and_the_router() -> None:
    mixture, x = tiny()
    mixture(x).square().sum().backward()
    assert mixture.gate.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixture.experts.parameters())


def test_router_stays_in_float() -> None:
    torch.manual_seed(0)
    router = Router(8, 4, 2).to(torch.bfloat16)
    assert router(torch.randn(3, 8).to(torch.bfloat16)).weight.dtype == torch.float32


def test_balance_loss_is_one_when_even() -> None:
    even = torch.full((8, 4), 0.25)
    spread = torch.arange(16).reshape(8, 2) % 4
    assert balance_loss(even, spread) == 1
    skewed = torch.tensor([[0.7, 0.3, 0.0, 0.0]]).expand(8, 4)
    assert balance_loss(skewed, torch.tensor([[0, 1]]).expand(8, 2)) > 1


def test_balance_loss_in_training_only() -> None:
    mixture, x = tiny()
    rows = x.flatten(0, 1)
    assert mixture.gate(rows).balance_loss is None
    assert mixture.train().gate(rows).balance_loss.requires_grad
