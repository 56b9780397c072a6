import pytest
import torch

from vqcompress.moments.accumulate import BLOCK, MomentAccumulator
from vqcompress.moments.second_moment import SecondMoment


def samples(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


def moments_of(*batches: torch.Tensor, **options) -> SecondMoment:
    accumulator = MomentAccumulator(batches[0].shape[1], **options)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.finish()


@pytest.mark.parametrize("columns", [3, BLOCK, BLOCK + 70])
def test_mean_of_outer_products(columns: int) -> None:
    batches = [samples(1000, columns), samples(10, columns, 1), samples(7, columns, 2)]
    found = moments_of(*batches)
    x = torch.cat(batches).double()
    torch.testing.assert_close(found.dense().double(), x.t() @ x / len(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.dense(), found.dense().t())
    assert (found.seen, found.used, found.columns) == (1017, 1017, columns)
    assert found.dense().dtype is torch.float32


def test_half_precision_samples_are_summed_in_single_precision() -> None:
    x = torch.full((4096, 4), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(moments_of(x).dense(), torch.full((4, 4), 60000.0**2), rtol=1e-4, atol=0)


def test_samples_are_copied_before_they_are_held_back() -> None:
    x = samples(5, 4)
    accumulator = MomentAccumulator(4)
    accumulator.add(x)
    expected = x.t() @ x / 5
    x.zero_()
    torch.testing.assert_close(accumulator.finish().dense(), expected)


def test_nothing_added() -> None:
    found = MomentAccumulator(4).finish()
    assert (found.seen, found.used) == (0, 0)
    assert torch.equal(found.dense(), torch.zeros(4, 4))


def test_drawing_samples_is_seeded_and_unbiased() -> None:
    few, many = samples(40, 3), 5 * samples(4000, 3, 1)
    exact = moments_of(few, many).dense()
    drawn = [moments_of(few, many, max_samples_per_call=50, seed=seed) for seed in range(200)]
    assert {(m.seen, m.used) for m in drawn} == {(4040, 90)}
    mean = torch.stack([m.dense() for m in drawn]).mean(0)
    torch.testing.assert_close(mean, exact, rtol=0.05, atol=0.5)
    again = moments_of(few, many, max_samples_per_call=50, seed=0)
    assert torch.equal(again.dense(), drawn[0].dense())
    assert not torch.equal(drawn[1].dense(), drawn[0].dense())


def test_all_positions_are_drawn_equally_often() -> None:
    hits = torch.zeros(10)
    for seed in range(500):
        hits += moments_of(torch.eye(10), max_samples_per_call=3, seed=seed).dense().diagonal()
    torch.testing.assert_close(hits / 500, torch.full((10,), 0.1), rtol=0, atol=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_infinities_are_noticed(bad: float) -> None:
    accumulator = MomentAccumulator(4)
    accumulator.add(samples(10, 4))
    assert accumulator.is_finite()
    broken = samples(10, 4)
    broken[3, 2] = bad
    accumulator.add(broken)
    assert not accumulator.is_finite()


def test_state_dict_round_trip() -> None:
    found = moments_of(samples(9000, 6), max_samples_per_call=100)
    again = SecondMoment.from_state_dict(found.state_dict())
    assert torch.equal(again.dense(), found.dense())
    assert (again.seen, again.used) == (9000, 100)
