"""Scalar codes under one budget: against brute force, and what choices are said to leave against what they do."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from vqcompress.formats import ScalarSpec
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import GPTQSettings, quantize_weight
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.quantizers.layer_error import output_power
from vqcompress.quantizers.scalar_allocation import LayerChoices, ScalarChoice, allocate_choices, scalar_choices


def ladder(weights: int, importance: float) -> LayerChoices:
    """Choices as a real layer's are: every bit a fourth of the error, dense without any."""
    coded = [
        ScalarChoice(
            ScalarSpec(bits, group),
            stored=bits + (16 + bits) / group,
            left=weights * 4.0**-bits * (1 + group / 200),
        )
        for bits in range(2, 9)
        for group in (16, 32, 64)
    ]
    return LayerChoices(weights, importance, (*coded, ScalarChoice(None, stored=16.0, left=0.0)))


def spent(granted: dict[str, ScalarChoice], layers: dict[str, LayerChoices]) -> float:
    return sum(granted[n].stored * layers[n].weights for n in layers) / sum(layer.weights for layer in layers.values())


def cost(granted: dict[str, ScalarChoice], layers: dict[str, LayerChoices]) -> float:
    return sum(layers[name].importance * choice.left for name, choice in granted.items())


@pytest.mark.parametrize("bits", [2.6, 3.0, 3.3, 4.1])
def test_near_the_best_of_all_combinations_within_the_budget(bits: float) -> None:
    layers = {"a": ladder(100, 30.0), "b": ladder(300, 1.0), "c": ladder(50, 0.2)}
    granted = allocate_choices(layers, bits, 0.0)
    assert spent(granted, layers) <= bits
    every = (dict(zip(layers, each, strict=True)) for each in product(*(layer.choices for layer in layers.values())))
    best = min(cost(each, layers) for each in every if spent(each, layers) <= bits)
    assert cost(granted, layers) <= 1.35 * best  # steps of a hull may not fit at the end


def test_no_layer_goes_below_its_share() -> None:
    layers = {"loud": ladder(100, 1e6), "silent": ladder(100, 1e-9)}
    granted = allocate_choices(layers, 4.0, 0.75)
    assert granted["silent"].stored >= 3.0
    assert spent(granted, layers) <= 4.0


def test_a_small_layer_that_decides_is_left_dense() -> None:
    layers = {"small": ladder(10, 1e9), "large": ladder(10_000, 1.0)}
    granted = allocate_choices(layers, 3.3, 0.75)
    assert granted["small"].spec is None
    assert spent(granted, layers) <= 3.3


@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 16), (4, 64), (5, 128)])
def test_what_a_choice_is_said_to_leave_is_what_gptq_leaves(bits: int, group_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator) * (0.5 + torch.rand(64, 1, generator=generator))
    inputs = torch.randn(2048, 256, generator=generator) / torch.arange(1, 257) ** 0.5
    moment = inputs.t() @ inputs / 2048
    sensitivity = prepare_feedback(SecondMoment(moment)).sensitivity
    found = scalar_choices(weight, sensitivity, (group_size,), 6, 16.0)
    choice = next(each for each in found if each.spec is not None and each.spec.bits == bits)
    coded = quantize_weight(weight, moment, method="gptq", bits=bits, settings=GPTQSettings(group_size, damping=1e-3))
    assert coded.bits_per_weight == pytest.approx(choice.stored)
    assert choice.left == pytest.approx(output_power(weight - coded.decode(), moment), rel=0.3)
