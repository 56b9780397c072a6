"""Shrinkage towards other experts or white noise: exact where there is plenty, safe where there is next to nothing."""

from __future__ import annotations

import pytest
import torch

from vqcompress.moments.accumulate import MomentAccumulator
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.shrinkage import expert_key, is_undersampled, shrinkage, shrunk_moment

COLUMNS = 32


def true_moment(seed: int = 0) -> torch.Tensor:
    basis, _ = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(seed)))
    return basis @ torch.diag(1.0 / torch.arange(1.0, COLUMNS + 1)) @ basis.t()


def recorded(samples: int, seed: int = 1) -> SecondMoment:
    accumulator = MomentAccumulator(COLUMNS)
    noise = torch.randn(samples, COLUMNS, generator=torch.Generator().manual_seed(seed))
    accumulator.add(noise @ torch.linalg.cholesky(true_moment()).t())
    return accumulator.finish()


def test_plenty_of_samples_are_believed() -> None:
    moments = recorded(50_000)
    assert shrinkage(moments.dense(), moments.used) < 1e-3
    assert torch.allclose(shrunk_moment(moments).dense(), moments.dense(), atol=1e-3)


@pytest.mark.parametrize("samples", [4, 16, 64])
def test_shrinkage_comes_nearer_to_the_truth(samples: int) -> None:
    before = after = 0.0
    for seed in range(20):
        moments = recorded(samples, seed)
        before += float((moments.dense() - true_moment()).square().sum())
        after += float((shrunk_moment(moments).dense() - true_moment()).square().sum())
    assert after < 0.9 * before


def test_other_experts_are_a_better_target_than_white_noise() -> None:
    undersampled, others = recorded(8), [recorded(4000, seed) for seed in (5, 6)]
    assert is_undersampled(undersampled)
    alone = (shrunk_moment(undersampled).dense() - true_moment()).square().sum()
    helped = (shrunk_moment(undersampled, others).dense() - true_moment()).square().sum()
    assert helped < 0.5 * alone


def test_a_layer_that_never_ran_takes_what_other_experts_saw() -> None:
    silent = SecondMoment(torch.zeros(COLUMNS, COLUMNS))
    other = recorded(500)
    assert torch.allclose(shrunk_moment(silent, [silent, other]).dense(), other.dense())
    assert shrunk_moment(silent) is None


def test_white_and_single_inputs_do_not_divide_by_zero() -> None:
    assert shrinkage(torch.eye(COLUMNS), 10) == 1.0
    assert shrinkage(torch.zeros(COLUMNS, COLUMNS), 10) == 1.0
    assert shrinkage(torch.ones(1, 1), 10) == 1.0
    assert torch.equal(
        shrunk_moment(SecondMoment(torch.full((1, 1), 2.0), seen=5, used=5)).dense(), torch.full((1, 1), 2.0)
    )


def test_the_same_layer_of_other_experts_has_one_key() -> None:
    assert expert_key("blocks.2.moe.experts.11.fc1") == expert_key("blocks.2.moe.experts.0.fc1")
    assert expert_key("blocks.2.moe.experts.0.fc1") != expert_key("blocks.3.moe.experts.0.fc1")
    assert expert_key("blocks.2.attn.qkv") is None
