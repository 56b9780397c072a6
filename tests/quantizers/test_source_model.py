"""The choice of a source model looks where the cost is, and what was encoded is checked against what was promised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import quantize_weight
from vqcompress.quantizers.error_feedback import FeedbackPlanner
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.quantizers.source_check import MOST_IN_ALL, MOST_IN_AN_OUTPUT, keeps_promise, other_models
from vqcompress.quantizers.source_model import SampleCode, SourceModel, SourceOptions, select_source_model
from vqcompress.quantizers.trellis import TrellisSettings, _Task

OUTPUTS, COLUMNS = 64, 512


def gaussian(seed: int = 0) -> Tensor:
    return torch.randn(OUTPUTS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def spiky(seed: int = 0) -> Tensor:
    """Gaussian but for 3 in 1000 weights of 8 to 25 standard deviations, in the columns whose input is strong."""
    generator = torch.Generator().manual_seed(seed + 1)
    weight = gaussian(seed)
    for column in range(0, 64):
        places = torch.randint(OUTPUTS, (2,), generator=generator)
        weight[places, column] = torch.rand(2, generator=generator) * 17 + 8
    return weight


def moment() -> SecondMoment:
    """Independent inputs, of which 64 have nearly all the power."""
    return SecondMoment(torch.diag(torch.where(torch.arange(COLUMNS) < 64, 100.0, 0.1)))


def chosen(weight: Tensor, costs: Tensor, rates: Tensor, seed: int) -> SourceModel:
    generator = torch.Generator().manual_seed(seed)
    return select_source_model(weight, SourceOptions(rotation=False), SampleCode(8, rates, costs), generator)


@pytest.mark.parametrize("seed", range(5))
def test_heavy_tails_in_the_columns_that_cost_most_decide(seed):
    """They are an eighth of the columns: of 24 drawn alike three would be among them, and count as little as others."""
    strong = torch.arange(COLUMNS) < 64
    costs, rates = torch.where(strong, 1000.0, 1.0).double(), torch.where(strong, 4, 2)
    assert chosen(spiky(seed), costs, rates, seed).tail >= 0.1
    assert chosen(gaussian(seed), costs, rates, seed).tail <= 0.05


def test_an_output_of_zeros_has_a_scale_of_its_own():
    weight = gaussian()
    weight[7] = 0
    assert chosen(weight, torch.ones(COLUMNS).double(), torch.full((COLUMNS,), 3), 0).row_scales
    packed = quantize_weight(weight, bits=3.0, settings=TrellisSettings(state_bits=8))
    assert not packed.decode()[7].any()


def test_a_weak_output_is_not_drowned_in_the_error_of_others():
    weight = gaussian()
    weight[7] *= 0.03
    packed = quantize_weight(weight, bits=3.0, settings=TrellisSettings(state_bits=8))
    assert packed.spec.row_scales
    assert packed.spec.rotation == 0
    assert relative_error(weight[7:8], packed.decode()[7:8]) < 0.08
    few = quantize_weight(weight[:, :32], bits=3.0, settings=TrellisSettings(state_bits=8))
    assert not few.spec.row_scales  # half a bit a weight for scales


def test_a_promise_is_broken_in_the_sum_or_in_one_output():
    promised = torch.ones(1000).double()
    assert keeps_promise(1.1 * promised, promised, 1000)
    assert not keeps_promise(1.15 * MOST_IN_ALL * promised, promised, 1000)
    assert keeps_promise(1.15 * MOST_IN_ALL * promised, promised, 10)  # by chance
    one = promised.clone()
    one[3] = 1.15 * MOST_IN_AN_OUTPUT
    assert one.sum() < 1.01 * promised.sum()
    assert not keeps_promise(one, promised, 1000)
    assert keeps_promise(one, promised, 10)
    assert keeps_promise(0 * promised, 0 * promised, 1000)


def test_what_a_user_fixed_is_not_tried_in_another_way():
    model = SourceModel(0.0, False)
    weight = gaussian()
    assert [each.rotation for each in other_models(model, SourceOptions(), weight)] == [64, 0, 0]
    assert list(other_models(model, SourceOptions(0.0, False, False), weight)) == []
    assert all(each.tail == 0.1 for each in other_models(SourceModel(0.1, False), SourceOptions(tail=0.1), weight))
    assert not any(each.rotation for each in other_models(model, SourceOptions(), weight[:12]))
    assert not any(each.row_scales for each in other_models(model, SourceOptions(), weight[:, :32]))


def task(weight: Tensor, settings: TrellisSettings) -> _Task:
    return _Task(weight, FeedbackPlanner.for_setting(moment(), settings.damping, 3.0), None, settings, 3.0, 0, None)


def test_a_wrong_model_is_found_out_and_another_one_taken():
    settings = TrellisSettings(state_bits=8)
    work = task(spiky(), settings)
    wrong = work.swept(None, SourceModel(0.0, False))
    assert not wrong.keeps_promise()
    right = work.checked(wrong, None, moment())
    assert right.source != wrong.source
    assert right.error(moment()) < 0.5 * wrong.error(moment())


def test_one_lost_output_is_found_out_where_the_sum_looks_fine():
    weight = gaussian()
    weight[5, :64] *= 0.3
    weight[5, 3] = 5.5
    work = task(weight, TrellisSettings(state_bits=8))
    wrong = work.swept(None, SourceModel(0.0, False))
    ratio = wrong.output_costs / wrong.output_costs_in_range
    assert int(ratio.argmax()) == 5
    assert wrong.output_costs.sum() < MOST_IN_ALL * wrong.output_costs_in_range.sum()
    assert not wrong.keeps_promise()
    right = work.checked(wrong, None, moment())
    assert right.source != wrong.source
    assert right.keeps_promise()


def test_a_model_that_fits_is_encoded_once():
    work = task(gaussian(), TrellisSettings(state_bits=8))
    columns = work.swept(None)
    assert columns.keeps_promise()
    assert work.checked(columns, None, moment()) is columns


def test_the_layer_is_better_for_it():
    packed = quantize_weight(spiky(), moment(), bits=3.0, settings=TrellisSettings(state_bits=8, outliers=False))
    plain = TrellisSettings(state_bits=8, outliers=False, tail=0.0, row_scales=False, rotation=False)
    worse = quantize_weight(spiky(), moment(), bits=3.0, settings=plain)
    errors = [relative_error(spiky(), each.decode(), moment()) for each in (packed, worse)]
    assert errors[0] < 0.5 * errors[1]
