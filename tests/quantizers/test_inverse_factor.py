"""The block-wise factor against the identity that defines it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.quantizers.inverse_factor import ELIMINATED_SINGLY, inverse_upper_factor, raised_cholesky

BY_BLOCKS = partial(inverse_upper_factor, largest_whole=0, block=32)


def moment_of(columns: int) -> torch.Tensor:
    x = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(0))
    return x.t() @ x / len(x)


@pytest.mark.parametrize("columns", [5, 64, 150])
def test_it_is_the_factor_of_the_inverse(columns):
    moment = moment_of(columns)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(1))
    upper, diagonal = BY_BLOCKS(moment, order, 0.1)
    damped = moment[order][:, order].double() + 0.1 * torch.eye(columns, dtype=torch.float64)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.double().t() @ upper.double(), torch.linalg.inv(damped), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(diagonal.float(), upper.diagonal())


def test_a_moment_that_is_not_definite_is_told():
    for factorize in (BY_BLOCKS, inverse_upper_factor):
        assert factorize(-moment_of(40), torch.arange(40), 0.0) is None


def test_large_moments_go_block_by_block_to_the_same_end():
    moment = moment_of(100)
    moment[:, 3] = moment[3] = 0  # a dead input: definite only with damping
    whole = prepare_feedback(SecondMoment(moment), 0.0)
    blocks = prepare_feedback(SecondMoment(moment), 0.0, BY_BLOCKS)
    assert torch.equal(blocks.order, whole.order)
    torch.testing.assert_close(blocks.factor, whole.factor)
    torch.testing.assert_close(blocks.sensitivity, whole.sensitivity)


def eliminated(moment: torch.Tensor, distortion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What dynamic programming leaves of ``moment`` before each column, the last column first, and the pivots."""
    left, pivots = moment.clone(), []
    for j, share in enumerate(distortion):
        pivots.append(left[j, j].clone())
        left = left - (1 - share) * torch.outer(left[j], left[j]) / left[j, j]
    return left, torch.stack(pivots)


@pytest.mark.parametrize("columns", [3, ELIMINATED_SINGLY + 1, 130])
def test_raised_pivots_are_those_of_the_recursion(columns):
    moment = moment_of(columns).double()
    distortion = torch.rand(columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    lower = raised_cholesky(moment.clone(), distortion)
    _, pivots = eliminated(moment, distortion)
    torch.testing.assert_close(lower.diagonal().square(), pivots / (1 - distortion))
    added = lower @ lower.t() - moment
    torch.testing.assert_close(added, torch.diag(pivots * distortion / (1 - distortion)), atol=1e-9, rtol=1e-6)


def test_raised_factors_agree_by_blocks_and_in_one_piece():
    moment, order = moment_of(100), torch.randperm(100, generator=torch.Generator().manual_seed(1))
    distortion = torch.linspace(0, 0.9, 100)
    whole, blocks = (find(moment, order, 0.1, distortion) for find in (inverse_upper_factor, BY_BLOCKS))
    torch.testing.assert_close(blocks[0], whole[0])
    torch.testing.assert_close(blocks[1], whole[1])


def test_an_exact_code_raises_nothing():
    moment = moment_of(70).double()
    zeros = torch.zeros(70)
    torch.testing.assert_close(raised_cholesky(moment.clone(), zeros), torch.linalg.cholesky(moment))
    assert raised_cholesky(-moment, zeros) is None
