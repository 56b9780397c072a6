"""Layers that see one vector an image: eigenvalues that hold for prompts which calibration has not shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.errors import CalibrationError
from vqcompress.moments.accumulate import MomentAccumulator
from vqcompress.moments.cross_validation import FOLDS, cross_validated
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.shrinkage import shrunk_moment
from vqcompress.quantizers import quantize_weight

COLUMNS, BATCHES, STEPS = 48, 8, 10


def vectors(prompts: int, seed: int) -> Tensor:
    """Inputs ``[prompts, steps, columns]`` that are a strong function of the timestep and a weak one of the prompt."""
    times = torch.randn(STEPS, COLUMNS, generator=torch.Generator().manual_seed(100))
    spread = torch.linspace(1, 0.3, COLUMNS)
    texts = torch.randn(prompts, COLUMNS, generator=torch.Generator().manual_seed(seed)) * spread
    return 3 * times + texts[:, None]


def recorded(inputs: Tensor, folds: int) -> SecondMoment:
    """As calibration records them: batches of prompts, each of all timesteps."""
    accumulator = MomentAccumulator(COLUMNS, folds=folds)
    for number, batch in enumerate(inputs.chunk(BATCHES)):
        accumulator.start_part(number)
        for step in range(STEPS):
            accumulator.add(batch[:, step])
        accumulator.absorb(accumulator.take_part())
    return accumulator.finish()


TRUTH = (lambda x: x.t() @ x / len(x))(vectors(4000, seed=9).flatten(0, 1))


def test_small_eigenvalues_are_those_of_other_prompts() -> None:
    moment = recorded(vectors(32, seed=0), FOLDS)
    found = cross_validated(moment).dense()
    _, basis = torch.linalg.eigh(moment.dense())
    weakest = basis[:, :16]
    true, raw, mended = (((weakest.t() @ h) * weakest.t()).sum(1).mean() for h in (TRUTH, moment.dense(), found))
    assert raw < 0.1 * true
    assert 0.7 * true < mended < 1.4 * true
    assert found.trace() == pytest.approx(float(moment.dense().trace()), rel=1e-4)


@pytest.mark.parametrize(("method", "gain"), [("trellis", 0.6), ("gptq", 0.8)])  # GPTQ damps more by itself
def test_a_layer_holds_on_prompts_that_were_not_recorded(method: str, gain: float) -> None:
    weight = torch.randn(192, COLUMNS, generator=torch.Generator().manual_seed(3))
    moment = recorded(vectors(32, seed=0), FOLDS)

    def error(second_moment: SecondMoment) -> float:
        difference = quantize_weight(weight, second_moment, method=method, bits=3).decode() - weight
        return float(((difference @ TRUTH) * difference).sum() / ((weight @ TRUTH) * weight).sum())

    plain = SecondMoment(moment.dense(), seen=moment.seen, used=moment.used)
    assert error(cross_validated(moment)) < gain * error(plain)
    assert error(cross_validated(moment)) < 1.6 * error(SecondMoment(TRUTH))


def test_folds_are_one_moment_to_whoever_does_not_ask() -> None:
    inputs = vectors(32, seed=0)
    folded, plain = recorded(inputs, FOLDS), recorded(inputs, 1)
    assert len(folded.folds) == FOLDS
    assert not plain.folds
    assert (folded.seen, folded.used) == (plain.seen, plain.used)
    torch.testing.assert_close(folded.dense(), plain.dense())


def test_one_batch_has_nothing_to_be_compared_with() -> None:
    accumulator = MomentAccumulator(COLUMNS, folds=FOLDS)
    accumulator.add(vectors(4, seed=0).flatten(0, 1))
    assert not accumulator.finish().folds


def test_folds_survive_the_disk() -> None:
    moment = recorded(vectors(16, seed=0), FOLDS)
    again = SecondMoment.from_state_dict(moment.state_dict())
    assert torch.equal(again.dense(), moment.dense())
    assert [torch.equal(a.dense(), b.dense()) for a, b in zip(again.folds, moment.folds, strict=True)] == [True] * FOLDS
    assert (again.seen, again.used) == (moment.seen, moment.used)
    assert torch.equal(shrunk_moment(again).dense(), cross_validated(moment).dense())


def test_a_file_without_a_moment_is_told() -> None:
    with pytest.raises(CalibrationError, match=r"tensors called odd.*delete the file"):
        SecondMoment.from_state_dict({"odd": torch.zeros(2)})


def test_few_samples_stay_samples_and_mean_the_same() -> None:
    inputs = vectors(16, seed=0)[:, 0]
    parts = [inputs[::2], inputs[1::2]]
    kept = SecondMoment.of_folds([SecondMoment(samples=x / len(x) ** 0.5, seen=8, used=8) for x in parts])
    squares = SecondMoment.of_folds([SecondMoment(x.t() @ x / len(x), seen=8, used=8) for x in parts])
    torch.testing.assert_close(kept.dense(), squares.dense())
    found = cross_validated(kept)
    assert found.samples is not None
    assert found.ridge > 0
    assert found.diagonal().sum() == pytest.approx(float(kept.diagonal().sum()), rel=1e-4)
    strongest = torch.linalg.eigh(kept.dense())[1][:, -1]
    other = cross_validated(squares)
    assert found.power(strongest[None]) == pytest.approx(other.power(strongest[None]), rel=0.05)


def test_equal_inputs_and_silence() -> None:
    same = torch.ones(4, COLUMNS)
    alike = SecondMoment.of_folds([SecondMoment(same.t() @ same / 4, seen=4, used=4) for _ in range(2)])
    torch.testing.assert_close(cross_validated(alike).dense(), alike.dense(), atol=1e-4, rtol=1e-4)
    silent = SecondMoment.of_folds([SecondMoment(torch.zeros(COLUMNS, COLUMNS), seen=4, used=4) for _ in range(2)])
    assert not cross_validated(silent).dense().any()
