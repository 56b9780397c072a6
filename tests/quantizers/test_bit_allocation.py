"""Bit budgets against what reverse water-filling says by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch

from vqcompress.quantizers.bit_allocation import (
    DENSE,
    LEAST_SHARE,
    MAX_RATE,
    MIN_RATE,
    LayerCost,
    allocate_bits,
)


def layer(importance: float, outputs: int = 64, columns: int = 32, energy: float = 1.0) -> LayerCost:
    return LayerCost(outputs, torch.ones(columns), torch.full((columns,), energy), importance)


def mean(granted: dict[str, float], layers: dict[str, LayerCost]) -> float:
    return sum(granted[n] * layers[n].weights for n in layers) / sum(item.weights for item in layers.values())


def test_equal_layers_get_equal_bits() -> None:
    assert allocate_bits({"a": layer(1.0), "b": layer(1.0)}, 3.0) == pytest.approx({"a": 3.0, "b": 3.0}, abs=1e-3)


def test_a_factor_of_sixteen_in_cost_is_worth_two_bits() -> None:
    granted = allocate_bits({"a": layer(16.0), "b": layer(1.0)}, 4.0)
    assert granted == pytest.approx({"a": 5.0, "b": 3.0}, abs=1e-3)


def test_energy_counts_like_importance() -> None:
    assert allocate_bits({"a": layer(1.0, energy=16.0), "b": layer(1.0)}, 4.0)["a"] == pytest.approx(5.0, abs=1e-3)


def test_the_budget_is_met_over_layers_of_all_sizes() -> None:
    layers = {str(i): layer(10.0**-i, outputs=16 << i, columns=8 + 40 * i) for i in range(6)}
    for bits in (2.0, 3.1, 4.7):
        assert mean(allocate_bits(layers, bits), layers) == pytest.approx(bits, abs=1e-3)


def test_rates_stay_within_what_the_codes_can_do() -> None:
    granted = allocate_bits({"a": layer(1e12), "b": layer(1e-12)}, 3.0)
    assert granted["b"] >= MIN_RATE
    assert granted["a"] <= MAX_RATE


def test_a_small_layer_that_decides_the_output_stays_dense() -> None:
    layers = {"small": layer(1e6, outputs=8), **{str(i): layer(1.0) for i in range(8)}}
    granted = allocate_bits(layers, 3.0)
    assert granted["small"] == DENSE
    assert mean(granted, layers) == pytest.approx(3.0, abs=1e-3)


def test_dense_is_judged_by_what_it_takes_on_disk() -> None:
    others = {str(i): layer(1.0) for i in range(8)}
    wide = LayerCost(8, torch.ones(32), torch.ones(32), 1e3, dense_bits=32.0)
    narrow = LayerCost(8, torch.ones(32), torch.ones(32), 1e3)
    assert allocate_bits({"x": narrow, **others}, 4.0)["x"] == DENSE
    assert allocate_bits({"x": wide, **others}, 4.0)["x"] <= MAX_RATE


def test_no_other_choice_of_dense_layers_is_better() -> None:
    """Against brute force over all subsets, each with its own water level."""
    layers = {str(i): layer(10.0 ** (i - 2), outputs=8 << (3 * i % 5), columns=16) for i in range(7)}
    granted = allocate_bits(layers, 3.5)
    best = min(_cost(layers, bits) for bits in _all_choices(layers, 3.5))
    assert _cost(layers, granted) <= 1.3 * best  # the hull of the options, not every point between its corners
    assert mean(granted, layers) <= 3.5 + 1e-6


def _cost(layers: dict[str, LayerCost], granted: dict[str, float]) -> float:
    return sum(
        item.importance * item.weights * 4.0 ** -granted[name] for name, item in layers.items() if granted[name] < DENSE
    )


def _all_choices(layers: dict[str, LayerCost], bits: float):
    total = sum(item.weights for item in layers.values())
    for count in range(len(layers)):
        for dense in combinations(layers, count):
            coded = {name: item for name, item in layers.items() if name not in dense}
            spare = bits * total - sum(DENSE * layers[name].weights for name in dense)
            rest = spare / sum(item.weights for item in coded.values())
            if rest >= MIN_RATE:
                never = {name: replace(item, dense_bits=1e9) for name, item in coded.items()}
                yield {**allocate_bits(never, min(rest, MAX_RATE)), **dict.fromkeys(dense, DENSE)}


def test_layers_no_gradient_reaches_get_the_least() -> None:
    silent = allocate_bits({"a": layer(1.0), "silent": layer(0.0)}, 3.0)["silent"]
    assert silent == pytest.approx(LEAST_SHARE * 3.0)


def test_propagated_error_gets_bits() -> None:
    plain, other = layer(1.0), layer(1.0)
    late = replace(plain, propagated_error=torch.full((32,), 15.0))
    granted = allocate_bits({"late": late, "other": other}, 4.0)
    assert granted["late"] > granted["other"] + 0.01
    assert mean(granted, {"late": late, "other": other}) == pytest.approx(4.0, abs=1e-3)


def test_no_exchange_of_bits_between_layers_reduces_the_cost() -> None:
    """The curves are parametric; here each layer's error is computed from its bits alone, for all ways to share
    them."""
    layers = {
        "late": replace(layer(1.0), propagated_error=torch.linspace(0, 30, 32)),
        "plain": layer(4.0, energy=2.0),
        "few": replace(layer(2.0, outputs=16), propagated_error=torch.full((32,), 2.0)),
    }
    granted = allocate_bits(layers, 4.0)
    best = sum(_error(layers[name], bits) for name, bits in granted.items())
    for giver, taker in permutations(layers, 2):
        moved = {**granted, giver: granted[giver] - 0.1}
        moved[taker] += 0.1 * layers[giver].weights / layers[taker].weights
        assert best <= sum(_error(layers[name], bits) for name, bits in moved.items()) * (1 + 1e-6)


def _error(item: LayerCost, bits: float) -> float:
    """The layer's error where all columns are left at one level, by bisection of that level."""
    costs = item.sensitivity * item.energy * item.importance
    propagated = torch.zeros(len(costs)) if item.propagated_error is None else item.propagated_error
    low, high = -40.0, 10.0
    for _ in range(60):
        level = (low + high) / 2
        rates = ((costs / 4.0**level + propagated).log2() / 2).clamp_min(0)
        low, high = (level, high) if float(rates.mean()) > bits else (low, level)
    return item.weights * 4.0**high
