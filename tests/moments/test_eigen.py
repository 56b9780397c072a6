"""Moments with columns that no sample reached, and those on which torch's solver gives up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.moments.cross_validation import cross_validated
from vqcompress.moments.eigen import eigenvalues, eigenvectors
from vqcompress.moments.second_moment import SecondMoment


def moment(samples: int, columns: int, dead: int, seed: int = 0) -> Tensor:
    """Float64, with ``dead`` columns that are zero in every sample, every third one first."""
    x = torch.randn(samples, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.arange(columns).roll(1).view(3, -1).t().flatten()
    x[:, order[:dead]] = 0
    return x.t() @ x / samples


@pytest.fixture
def failing(monkeypatch):
    """torch as on the moment of `shapes` at half resolution that LAPACK's divide and conquer did not solve."""

    def give_up(*arguments, **options):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    monkeypatch.setattr(torch.linalg, "eigvalsh", give_up)


def check(square: Tensor, dead: int) -> None:
    vectors, values = eigenvectors(square), eigenvalues(square)
    assert vectors.shape == (len(square), len(square) - dead)
    torch.testing.assert_close(vectors.t() @ vectors, torch.eye(vectors.shape[1], dtype=torch.float64))
    along = (vectors.t() @ square @ vectors).diagonal()
    torch.testing.assert_close(along, values.flip(0)[: len(along)])
    assert values[:dead].eq(0).all()
    assert values.sum() == pytest.approx(float(square.trace()))
    torch.testing.assert_close((vectors * along) @ vectors.t(), square)


@pytest.mark.parametrize("dead", [0, 8, 24])
def test_columns_without_power_are_left_out(dead: int) -> None:
    check(moment(100, 24, dead), dead)


@pytest.mark.parametrize("dead", [0, 8])
def test_what_torch_does_not_solve_is_solved(failing, dead: int) -> None:
    check(moment(100, 24, dead), dead)


def test_a_moment_of_maps_of_one_position_is_cross_validated() -> None:
    """A 3 x 3 convolution of such a map reads zeros with eight of nine taps. What is zero stays so."""
    generator = torch.Generator().manual_seed(1)
    folds = []
    for _ in range(4):
        x = torch.zeros(640, 16, 9)
        x[:, :, 4] = torch.randn(640, 16, generator=generator)
        flat = x.flatten(1)
        folds.append(SecondMoment(flat.t() @ flat / 640, seen=640, used=640))
    found = cross_validated(SecondMoment.of_folds(tuple(folds))).dense()
    live = torch.arange(144) % 9 == 4
    assert found[~live].abs().max() < 1e-6
    torch.testing.assert_close(found[live][:, live], torch.eye(16), atol=0.2, rtol=0)
