"""Bit budgets against what reverse water-filling says by hand."""

from __future__ import annotations

import pytest
import torch

from vqcompress.quantizers.bit_allocation import MAX_RATE, MIN_RATE, LayerCost, allocate_bits, allocate_whole_bits


def layer(importance: float, rows: int = 64, columns: int = 32, energy: float = 1.0) -> LayerCost:
    return LayerCost(rows, torch.ones(columns), energy, importance)


def mean(granted: dict[str, float], layers: dict[str, LayerCost]) -> float:
    return sum(granted[n] * layers[n].weights for n in layers) / sum(item.weights for item in layers.values())


def test_equal_layers_get_equal_bits() -> None:
    assert allocate_bits({"a": layer(1.0), "b": layer(1.0)}, 3.0) == pytest.approx({"a": 3.0, "b": 3.0}, abs=1e-3)


def test_a_factor_of_sixteen_in_cost_is_worth_two_bits() -> None:
    granted = allocate_bits({"a": layer(16.0), "b": layer(1.0)}, 3.0)
    assert granted == pytest.approx({"a": 4.0, "b": 2.0}, abs=1e-3)


def test_energy_counts_like_importance() -> None:
    assert allocate_bits({"a": layer(1.0, energy=16.0), "b": layer(1.0)}, 3.0)["a"] == pytest.approx(4.0, abs=1e-3)


def test_the_budget_is_met_over_layers_of_all_sizes() -> None:
    layers = {str(i): layer(10.0**-i, rows=16 << i, columns=8 + 40 * i) for i in range(6)}
    for bits in (2.0, 3.1, 4.7):
        assert mean(allocate_bits(layers, bits), layers) == pytest.approx(bits, abs=1e-3)


def test_rates_stay_within_what_the_codes_can_do() -> None:
    granted = allocate_bits({"a": layer(1e12), "b": layer(1e-12)}, 3.0)
    assert granted["b"] >= MIN_RATE
    assert granted["a"] <= MAX_RATE


def test_layers_no_gradient_reaches_get_the_least() -> None:
    assert allocate_bits({"a": layer(1.0), "silent": layer(0.0)}, 3.0)["silent"] == pytest.approx(MIN_RATE)


def test_whole_bits_follow_the_same_order_within_the_budget() -> None:
    layers = {"a": layer(100.0), "b": layer(1.0), "c": layer(0.01)}
    granted = allocate_whole_bits(layers, 3.0, 2, 6)
    assert granted["a"] > granted["b"] >= granted["c"] >= 2
    assert mean(granted, layers) <= 3.0


def test_whole_bits_beat_equal_bits_by_the_predicted_cost() -> None:
    layers = {"a": layer(64.0), "b": layer(1.0, rows=256)}
    granted = allocate_whole_bits(layers, 3.0, 2, 6)
    cost = sum(item.importance * item.weights * 4.0 ** -granted[name] for name, item in layers.items())
    assert cost < sum(item.importance * item.weights * 4.0**-3 for item in layers.values())
