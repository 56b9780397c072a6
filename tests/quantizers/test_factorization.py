"""The block-wise factor against the identity that defines it."""

from __future__ import annotations

import pytest
import torch

from vqcompress.quantizers import error_feedback, factorization
from vqcompress.quantizers.factorization import inverse_upper_factor


def moment_of(columns: int) -> torch.Tensor:
    x = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(0))
    return x.t() @ x / len(x)


@pytest.mark.parametrize("columns", [5, 64, 150])
def test_it_is_the_factor_of_the_inverse(columns, monkeypatch):
    monkeypatch.setattr(factorization, "BLOCK", 32)
    moment = moment_of(columns)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(1))
    upper, diagonal = inverse_upper_factor(moment, order, 0.1)
    damped = moment[order][:, order].double() + 0.1 * torch.eye(columns, dtype=torch.float64)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.double().t() @ upper.double(), torch.linalg.inv(damped), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(diagonal.float(), upper.diagonal())


def test_a_moment_that_is_not_definite_is_told():
    assert inverse_upper_factor(-moment_of(40), torch.arange(40), 0.0) is None


def test_large_moments_go_block_by_block_to_the_same_end(monkeypatch):
    monkeypatch.setattr(factorization, "BLOCK", 32)
    moment = moment_of(100)
    moment[:, 3] = moment[3] = 0  # a dead input: definite only with damping
    whole = error_feedback.prepare_feedback(moment, 0.0)
    monkeypatch.setattr(error_feedback, "LARGE", 50)
    blocks = error_feedback.prepare_feedback(moment, 0.0)
    assert torch.equal(blocks.order, whole.order)
    torch.testing.assert_close(blocks.factor, whole.factor)
    torch.testing.assert_close(blocks.sensitivity, whole.sensitivity)
