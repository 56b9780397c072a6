"""Rotary tables: rotations, dependence on distance alone, grids, scaling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.models.rotary import RotaryScaling, grid_table, rotate, row_table, time_aware_scaling

CPU = torch.device("cpu")


def scores(table: tuple[Tensor, Tensor], width: int) -> Tensor:
    """Products of one query and one key, put at every pair of places."""
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(width, generator=generator).expand(1, len(table[0]), 1, width) for _ in range(2))
    return rotate(query, table)[0, :, 0] @ rotate(key, table)[0, :, 0].T


def test_rotation_keeps_length_and_dtype() -> None:
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0))
    table = row_table(7, 8, RotaryScaling(), CPU)
    torch.testing.assert_close(rotate(x, table).norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16
    assert rotate(x, table)[:, 0].equal(x[:, 0])


def test_rows_see_distance_alone() -> None:
    products = scores(row_table(9, 16, RotaryScaling(), CPU), 16)
    torch.testing.assert_close(products[2:, 2:], products[:-2, :-2], rtol=1e-4, atol=1e-4)


def test_grids_see_the_distance_of_rows_and_columns() -> None:
    products = scores(grid_table(4, 5, 16, RotaryScaling(), CPU), 16).reshape(4, 5, 4, 5)
    torch.testing.assert_close(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(products[1, 0, 0, 0], products[0, 1, 0, 0])


def test_grid_pairs_alternate_rows_and_columns() -> None:
    cos, _ = grid_table(3, 4, 8, RotaryScaling(), CPU)
    rows, columns = cos.reshape(3, 4, 2, 2).unbind(-1)
    assert bool((rows == rows[:, :1]).all())
    assert bool((columns == columns[:1]).all())
    rate = torch.tensor([1.0, 10000.0**-0.5])
    torch.testing.assert_close(columns[0], (torch.arange(4.0)[:, None] * rate).cos())


def test_linear_scaling_interpolates() -> None:
    cos, _ = row_table(8, 8, RotaryScaling(linear=2.0), CPU)
    torch.testing.assert_close(cos[::2], row_table(4, 8, RotaryScaling(), CPU)[0])


def test_ntk_scaling_keeps_the_fastest_pair() -> None:
    plain, scaled = (row_table(8, 8, scaling, CPU)[0] for scaling in (RotaryScaling(), RotaryScaling(ntk=2.0)))
    assert plain[:, 0].equal(scaled[:, 0])
    assert bool((scaled[1:, 1:] > plain[1:, 1:]).all())


@pytest.mark.parametrize(("t", "expected"), [(0.1, RotaryScaling(linear=2.0)), (0.3, RotaryScaling(ntk=2.0))])
def test_scaling_changes_at_the_watershed(t: float, expected: RotaryScaling) -> None:
    assert time_aware_scaling(2.0, 0.3, t) == expected
