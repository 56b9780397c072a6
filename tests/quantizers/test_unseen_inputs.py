"""Inputs that are zero in calibration and come afterwards: their weights keep bits, as a scalar code's do."""

from __future__ import annotations

import pytest
import torch

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import quantize_weight
from vqcompress.quantizers.unseen_inputs import ALLOWED_RISE, hardly_seen, with_unseen_inputs

SAMPLES, OUTPUTS, COLUMNS = 4096, 192, 128


def inputs(dead: int, seed: int = 0):
    """Correlated inputs behind a ReLU, ``[samples, columns]``, the last ``dead`` of which calibration never sees; and
    what they are when it does."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(SAMPLES, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)
    later = mixed.relu() / COLUMNS**0.5
    seen = later.clone()
    seen[:, COLUMNS - dead :] = 0
    return seen, later


def moment_of(x, counted=True):
    return SecondMoment(x.t() @ x / len(x), seen=len(x), used=len(x) if counted else 0)


def weight():
    return torch.randn(OUTPUTS, COLUMNS, generator=torch.Generator().manual_seed(7)) / COLUMNS**0.5


def lost(quantized, x):
    """Relative squared error of the outputs."""
    w = weight()
    return float(((quantized.decode() - w) @ x.t()).square().sum() / (w @ x.t()).square().sum())


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.0])
def test_no_more_is_lost_than_by_a_scalar_code_when_they_come(bits):
    seen, later = inputs(dead=8)
    scalar = quantize_weight(weight(), moment_of(seen), method="gptq", bits=int(bits))
    vector = quantize_weight(weight(), moment_of(seen), method="trellis", bits=bits)
    assert lost(vector, seen) < lost(scalar, seen)
    assert lost(vector, later) < lost(scalar, later)


@pytest.mark.parametrize("method", ["trellis", "additive"])
def test_weights_that_nothing_is_known_about_are_not_given_up(method):
    seen, later = inputs(dead=8)
    careful, careless = (
        quantize_weight(weight(), moment_of(seen, counted), method=method, bits=3.0) for counted in (True, False)
    )
    assert lost(careful, later) < 0.5 * lost(careless, later)


@pytest.mark.parametrize("dead", [1, 8, 32, 96])
@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_what_they_cost_the_others_is_bounded(dead, bits):
    seen, _ = inputs(dead)
    counted, taken_for_true = moment_of(seen), moment_of(seen, counted=False)
    careful = quantize_weight(weight(), counted, method="trellis", bits=bits, settings={"damping": 1e-6})
    careless = quantize_weight(weight(), taken_for_true, method="trellis", bits=bits, settings={"damping": 1e-6})
    assert lost(careful, seen) < 1.15 * ALLOWED_RISE * lost(careless, seen)
    columns = slice(COLUMNS - dead, None)
    given_up = (careful.decode() - weight())[:, columns].square().sum() / weight()[:, columns].square().sum()
    assert given_up < 0.2 or dead == 96  # where they would get less than a bit each, they get none


def test_only_counted_squares_have_unseen_inputs():
    seen, later = inputs(dead=8)
    assert hardly_seen(moment_of(seen)).nonzero()[:, 0].tolist() == list(range(COLUMNS - 8, COLUMNS))
    for moment in (
        moment_of(later),
        moment_of(seen, counted=False),
        SecondMoment(torch.zeros(8, 8), seen=9, used=9),
        SecondMoment(samples=seen[:16], ridge=0.1, seen=16, used=16),
    ):
        assert not hardly_seen(moment).any()
        assert with_unseen_inputs(moment, 3.0) is moment


def test_one_faint_sample_is_hardly_seen_and_a_usual_one_is_seen():
    seen, _ = inputs(dead=2)
    usual = float(seen[:, :-2].square().mean(0).median()) ** 0.5
    seen[5, -2], seen[5, -1] = 0.1 * usual, 3 * usual
    assert hardly_seen(moment_of(seen)).nonzero()[:, 0].tolist() == [COLUMNS - 2]


def test_the_moment_that_was_passed_stays_as_it_is():
    moment = moment_of(inputs(dead=8)[0])
    before = moment.dense().clone()
    raised = with_unseen_inputs(moment, 3.0)
    assert torch.equal(moment.dense(), before)
    assert (raised.used, raised.seen) == (moment.used, moment.seen)
    assert torch.equal(raised.dense() - torch.diag(raised.diagonal()), before - torch.diag(before.diagonal()))
