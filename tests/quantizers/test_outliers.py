"""Weights kept aside: which ones, within the budget, and what they save on weights that break a code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.quantizers.outliers import find_outliers, outliers_worth_storing

OUTPUTS, COLUMNS = 192, 256


def gaussian(seed: int = 1) -> Tensor:
    return 0.02 * torch.randn(OUTPUTS, COLUMNS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def moment() -> Tensor:
    """Correlated inputs, some columns much stronger than others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, COLUMNS, generator=generator) * torch.logspace(0, -1.5, COLUMNS)
    x = x @ torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator))[0]
    return x.t() @ x / len(x)


def test_one_huge_weight_is_found_and_little_else():
    weight = gaussian()
    weight[17, 40] = -3.5
    found = outliers_worth_storing(weight, torch.ones(COLUMNS), 3.0)
    assert 40 * OUTPUTS + 17 in found.positions.tolist()
    assert len(found) < 5
    rest = found.removed_from(weight)
    assert abs(float(rest[17, 40])) < 2e-3  # float16's rounding of 3.5
    assert torch.equal(
        rest.t().reshape(-1)[found.positions], (weight.t().reshape(-1)[found.positions] - found.values.float())
    )


def test_large_columns_and_outputs_are_left_to_scales():
    weight = gaussian()
    weight[5] *= 50
    weight[:, 9] *= 50
    found = find_outliers(weight, torch.ones(COLUMNS), 3.0, 3.5)
    assert len(found) < 10


def test_a_small_weight_can_have_one_too():
    weight = gaussian()[:48, :32].clone()
    weight[5, 7] = 4.0
    assert outliers_worth_storing(weight, torch.ones(32), 3.0).positions.tolist() == [7 * 48 + 5]


def test_an_outlier_must_save_what_it_stores():
    """A column that nothing reads has none, however large its weights."""
    weight = gaussian()
    weight[3, 7] = 5.0
    sensitivity = torch.ones(COLUMNS)
    sensitivity[7] = 1e-9
    assert 7 * OUTPUTS + 3 not in find_outliers(weight, sensitivity, 3.0, 3.5).positions.tolist()


def test_heavy_tails_are_left_to_the_source_model():
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(OUTPUTS, COLUMNS, generator=generator)
    weight = normal / torch.empty(OUTPUTS, COLUMNS).exponential_(1.0, generator=generator).sqrt()
    found = outliers_worth_storing(weight, torch.ones(COLUMNS), 3.0)
    assert found.bits_per_weight(weight) <= 0.01
    assert len(find_outliers(weight, torch.ones(COLUMNS), 3.0, 3.5)) > 10 * len(found)


def _heavy_tails(weight: Tensor) -> Tensor:
    """Student's t with 2 degrees of freedom."""
    generator = torch.Generator().manual_seed(3)
    return weight / torch.empty_like(weight).exponential_(1.0, generator=generator).sqrt()


def _with(weight: Tensor, changes: dict[tuple[int, int], float]) -> Tensor:
    for place, value in changes.items():
        weight[place] = value
    return weight


PLANTED = {
    "one weight of 175 deviations in the strongest column": lambda w, j: _with(w, {(17, j): 3.5}),
    "an output 60 times as large": lambda w, j: torch.cat([60 * w[:1], w[1:]]),
    "a column 60 times as large": lambda w, j: torch.cat([60 * w[:, :1], w[:, 1:]], 1),
    "heavy tails": lambda w, j: _heavy_tails(w),
    "two clusters": lambda w, j: 0.02 * w.sign() * (1 + w),
    "a dead output": lambda w, j: torch.cat([0 * w[:1], w[1:]]),
    "a scale of 1e-6": lambda w, j: 5e-5 * w,
    "a scale of 1e4": lambda w, j: 5e5 * w,
    "constant outputs": lambda w, j: torch.linspace(-0.1, 0.1, OUTPUTS)[:, None].expand_as(w).clone(),
    "equal outputs": lambda w, j: w[:1].expand_as(w).clone(),
    "the ends of float16": lambda w, j: _with(w, {(0, 0): 65504.0, (1, 1): 6e-8}),
}


# Residual k-means has no error feedback, so its rival has none either, and its worst output may be near that one's.
RIVALS = {"trellis": ("gptq", 1.0), "additive": ("gptq", 1.0), "kmeans": ("rtn", 1.1)}


def channel_errors(weight: Tensor, decoded: Tensor, moment: Tensor) -> Tensor:
    """Relative error of each output that has any."""
    lost = ((weight - decoded) @ moment * (weight - decoded)).sum(1)
    power = (weight @ moment * weight).sum(1)
    live = power > 1e-12 * power.mean()
    return lost[live] / power[live]


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_no_planted_fault_makes_a_vector_code_worse_than_a_scalar_one(planted, method, moment):
    """In all and in the worst output."""
    weight = planted(gaussian(), int(moment.diagonal().argmax()))
    packed = quantize_weight(weight, moment, method=method, bits=3.0)
    scalar, near = RIVALS[method]
    rival = quantize_weight(weight, moment, method=scalar, bits=2)
    assert rival.bits_per_weight < 3.0
    assert packed.bits_per_weight <= 3.0
    ours, theirs = packed.decode(), rival.decode()
    assert math.isfinite(float(ours.abs().max()))
    assert relative_error(weight, ours, moment) <= relative_error(weight, theirs, moment)
    if packed.spec.format != "scalar":
        worst = channel_errors(weight, ours, moment).max()
        assert worst <= near * channel_errors(weight, theirs, moment).max() + 1e-6
    dead = (weight == 0).all(1)
    assert not ours[dead].any()


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_no_planted_fault_breaks_a_scalar_code(planted, method, moment):
    weight = planted(gaussian(), int(moment.diagonal().argmax()))
    packed = quantize_weight(weight, moment, method=method, bits=3)
    plain = quantize_weight(gaussian(), moment, method=method, bits=3)
    assert packed.nbytes <= plain.nbytes  # scales that 6-bit ones cannot follow are stored as float16
    assert packed.decode().isfinite().all()
    assert relative_error(weight, packed.decode(), moment) < 0.1


@pytest.mark.parametrize("method", [*RIVALS, "gptq", "rtn"])
def test_a_weight_of_zeros_stays_zero(method, moment):
    weight = torch.zeros(OUTPUTS, COLUMNS)
    packed = quantize_weight(weight, moment, method=method, bits=3)
    assert not packed.decode().any()
    assert relative_error(weight, packed.decode(), moment) == 0.0
    assert relative_error(weight, weight + 1, moment) == math.inf


def test_outliers_save_a_layer_and_can_be_left_out(moment):
    weight = gaussian()
    strongest = int(moment.diagonal().argmax())
    weight[17, strongest] = 3.5
    plain = quantize_weight(weight, moment, bits=3.0, settings=TrellisSettings(outliers=False))
    kept_aside = quantize_weight(weight, moment, bits=3.0)
    assert "outlier_values" not in plain.tensors
    assert kept_aside.spec.outliers == len(kept_aside.tensors["outlier_values"]) > 0
    assert kept_aside.bits_per_weight <= 3.0
    assert relative_error(weight, kept_aside.decode(), moment) < 0.7 * relative_error(weight, plain.decode(), moment)
    output_error = (kept_aside.decode() - weight)[17] @ moment @ (kept_aside.decode() - weight)[17]
    assert float(output_error / (weight[17] @ moment @ weight[17])) < 0.01
