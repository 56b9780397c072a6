import pytest
import torch

from vqcompress.errors import CalibrationError
from vqcompress.moments.accumulate import BLOCK, MomentAccumulator
from vqcompress.moments.second_moment import Moments


def rows(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


def moments_of(*batches: torch.Tensor, **options) -> Moments:
    accumulator = MomentAccumulator(batches[0].shape[1], **options)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.finish()


@pytest.mark.parametrize("columns", [3, BLOCK, BLOCK + 70])
def test_mean_of_outer_products(columns: int) -> None:
    batches = [rows(1000, columns), rows(10, columns, 1), rows(7, columns, 2)]
    found = moments_of(*batches)
    x = torch.cat(batches).double()
    torch.testing.assert_close(found.second_moment.double(), x.t() @ x / len(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.second_moment, found.second_moment.t())
    assert (found.rows, found.used_rows, found.columns) == (1017, 1017, columns)
    assert found.second_moment.dtype is torch.float32


def test_half_precision_rows_are_summed_in_single_precision() -> None:
    x = torch.full((4096, 4), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(moments_of(x).second_moment, torch.full((4, 4), 60000.0**2), rtol=1e-4, atol=0)


def test_rows_are_copied_before_they_are_held_back() -> None:
    x = rows(5, 4)
    accumulator = MomentAccumulator(4)
    accumulator.add(x)
    expected = x.t() @ x / 5
    x.zero_()
    torch.testing.assert_close(accumulator.finish().second_moment, expected)


def test_nothing_added() -> None:
    found = MomentAccumulator(4).finish()
    assert (found.rows, found.used_rows) == (0, 0)
    assert torch.equal(found.second_moment, torch.zeros(4, 4))


def test_drawing_rows_is_seeded_and_unbiased() -> None:
    few, many = rows(40, 3), 5 * rows(4000, 3, 1)
    exact = moments_of(few, many).second_moment
    drawn = [moments_of(few, many, max_rows_per_call=50, seed=seed) for seed in range(200)]
    assert {(m.rows, m.used_rows) for m in drawn} == {(4040, 90)}
    mean = torch.stack([m.second_moment for m in drawn]).mean(0)
    torch.testing.assert_close(mean, exact, rtol=0.05, atol=0.5)
    again = moments_of(few, many, max_rows_per_call=50, seed=0)
    assert torch.equal(again.second_moment, drawn[0].second_moment)
    assert not torch.equal(drawn[1].second_moment, drawn[0].second_moment)


def test_all_positions_are_drawn_equally_often() -> None:
    hits = torch.zeros(10)
    for seed in range(500):
        hits += moments_of(torch.eye(10), max_rows_per_call=3, seed=seed).second_moment.diagonal()
    torch.testing.assert_close(hits / 500, torch.full((10,), 0.1), rtol=0, atol=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_infinities_are_noticed(bad: float) -> None:
    accumulator = MomentAccumulator(4)
    accumulator.add(rows(10, 4))
    assert accumulator.is_finite()
    broken = rows(10, 4)
    broken[3, 2] = bad
    accumulator.add(broken)
    assert not accumulator.is_finite()


def test_merge_is_the_same_as_all_rows_together() -> None:
    one, two = rows(30, 5), rows(70, 5, 1)
    merged = moments_of(one).merge(moments_of(two))
    together = moments_of(one, two)
    torch.testing.assert_close(merged.second_moment, together.second_moment)
    assert (merged.rows, merged.used_rows) == (100, 100)
    empty = MomentAccumulator(5).finish()
    assert torch.equal(empty.merge(empty).second_moment, torch.zeros(5, 5))
    with pytest.raises(CalibrationError, match="5 and 4 columns"):
        merged.merge(MomentAccumulator(4).finish())


def test_state_dict_round_trip() -> None:
    found = moments_of(rows(9000, 6), max_rows_per_call=100)
    again = Moments.from_state_dict(found.state_dict())
    assert torch.equal(again.second_moment, found.second_moment)
    assert (again.rows, again.used_rows) == (9000, 100)
