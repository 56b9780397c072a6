"""Searches at half-integer rates against brute force over every bit stream."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.test_viterbi import coupled
from vqcompress.formats.trellis import new_bits, window_states
from vqcompress.formats.trellis_table import gaussian_error, value_table
from vqcompress.search.coupled_viterbi import CoupledSearch, CoupledViterbi, factor_metric
from vqcompress.search.decided_viterbi import CHUNK, DecidedSearch, DecidedViterbi
from vqcompress.search.viterbi import CpuViterbi, Search

TOYS = [(4, 1.5, 6), (4, 1.5, 5), (5, 1.5, 7), (6, 2.5, 4), (6, 2.5, 5), (4, 0.5, 9), (5, 0.5, 12), (10, 4.5, 2)]


def toy(state_bits: int, rate: float, length: int, seed: int = 0):
    """Target, scale, the two tables by new bits."""
    rng = np.random.default_rng(seed)
    tables = {int(rate) + more: rng.standard_normal(1 << state_bits).astype(np.float32) for more in (0, 1)}
    return rng.standard_normal(length).astype(np.float32), rng.uniform(0.5, 2, length).astype(np.float32), tables


def looked_up(tables, rate: float, states: np.ndarray) -> np.ndarray:
    """Values of ``states [..., outputs]``, weight by weight from the table of as many bits as it adds."""
    both = np.stack([np.asarray(tables[int(rate) + more], np.float32) for more in (0, 1)])
    return both[np.arange(states.shape[-1]) % 2, states]


def every_stream(rate: float, length: int, state_bits: int) -> np.ndarray:
    """States ``[streams, length]`` of every circular stream."""
    choices = [range(1 << bits) for bits in new_bits(rate, length).tolist()]
    return window_states(torch.tensor(list(itertools.product(*choices))).int(), rate, state_bits).numpy()


@pytest.mark.parametrize(("state_bits", "rate", "length"), TOYS)
def test_fixed_boundary_is_the_optimum_from_every_phase(state_bits, rate, length):
    x, r, tables = toy(state_bits, rate, length)
    states, bits = every_stream(rate, length, state_bits), new_bits(rate, length).tolist()
    costs = ((x - r * looked_up(tables, rate, states)) ** 2).sum(1)
    search = Search(state_bits, rate, tables, length, length)
    for phase in range(length):
        turn = np.roll(np.arange(length), -phase)
        boundaries = states[:, phase] >> bits[phase]
        for boundary in range(0, 1 << (state_bits - bits[phase]), 3):
            found = np.empty(length, np.int64)
            found[turn] = search(x[turn], r[turn], boundary, turn)
            best = costs[boundaries == boundary].min()
            cost = ((x - r * looked_up(tables, rate, found)) ** 2).sum()
            assert cost == pytest.approx(best, rel=1e-5)
            assert found[phase] >> bits[phase] == boundary


@settings(deadline=None, max_examples=60)
@given(
    outputs=st.integers(16, 81), rate=st.sampled_from([0.5, 1.5, 2.5, 3.5]), phase=st.integers(0, 15),
    together=st.sampled_from([None, CoupledViterbi, DecidedViterbi]), seed=st.integers(0, 999),
)  # fmt: skip
def test_symbols_decode_to_the_values(outputs, rate, phase, together, seed):
    generator = torch.Generator().manual_seed(seed)
    target, scale = torch.randn(outputs, generator=generator), torch.rand(outputs, generator=generator)
    tables = {int(rate) + more: value_table(8, int(rate) + more, 0.0) for more in (0, 1)}
    search = CpuViterbi(outputs, 8, tables, phase)
    if together is not None:
        search = together(outputs, 8, tables, phase, factor_metric(coupled(outputs, seed), phase))
    symbols, values = search(target, scale, rate)
    states = window_states(symbols.int(), rate, 8).numpy()
    assert np.array_equal(looked_up(tables, rate, states), values.numpy())
    assert bool((symbols < (1 << new_bits(rate, outputs))).all())


@pytest.mark.parametrize(
    ("state_bits", "rate"), [(8, 0.5), (8, 1.5), (8, 3.5), (10, 2.5), (12, 0.5), (12, 4.5), (12, 5.5)]
)
def test_error_is_the_one_that_plans_count_on(state_bits, rate):
    tables = {int(rate) + more: value_table(state_bits, int(rate) + more, 0.0) for more in (0, 1)}
    columns, ones = torch.randn(12, 1024, generator=torch.Generator().manual_seed(4)), torch.ones(1024)
    search = CpuViterbi(1024, state_bits, tables, 5)
    error = float(torch.stack([search(x, ones, rate)[1] - x for x in columns]).square().mean())
    assert error == pytest.approx(gaussian_error(state_bits, rate), rel=0.05)


def survivors(target, tables, state_bits: int, rate: float, metric, boundary: int) -> np.ndarray:
    """States of the search in words: every group keeps its cheapest path, whose errors move its later targets."""
    outputs = len(target)
    bits = [*new_bits(rate, outputs).tolist(), int(rate)]
    paths = {boundary: (0.0, [], [])}
    for t in range(outputs):
        found: dict[int, tuple[float, list[float], list[int]]] = {}
        for group, (cost, errors, states) in paths.items():
            goal = target[t] - sum(metric.pull[t, s] * e for s, e in enumerate(errors))
            for symbol in range(1 << bits[t]):
                state = (group << bits[t]) | symbol
                value, after = tables[bits[t]][state], state & ((1 << (state_bits - bits[t + 1])) - 1)
                total = cost + (metric.weight[t] * (goal - value)) ** 2
                if after not in found or total < found[after][0]:
                    found[after] = total, [*errors, value - target[t]], [*states, state]
        paths = found
    return np.array(paths[boundary][2])


@pytest.mark.parametrize(("state_bits", "rate", "outputs"), TOYS)
def test_coupled_search_keeps_the_survivors(state_bits, rate, outputs):
    ones = np.ones(outputs, np.float32)
    for seed in range(3):
        _, _, tables = toy(state_bits, rate, outputs, seed)
        target = np.random.default_rng(seed).standard_normal(outputs).astype(np.float32)
        metric = factor_metric(coupled(outputs, seed), 0)
        search = CoupledSearch(state_bits, rate, tables, metric)
        for boundary in range(0, 1 << (state_bits - int(rate)), 3):
            expected = survivors(target, tables, state_bits, rate, metric, boundary)
            assert np.array_equal(search(target, ones, boundary), expected)


def test_outputs_that_cost_alike_are_searched_as_by_themselves():
    outputs, tables = 61, {2: value_table(8, 2, 0.0), 3: value_table(8, 3, 0.0)}
    x, scale = torch.randn(outputs, generator=torch.Generator().manual_seed(3)), torch.ones(outputs)
    plain = CpuViterbi(outputs, 8, tables, 3)(x, scale, 2.5)
    found = CoupledViterbi(outputs, 8, tables, 3, factor_metric(2.5 * torch.eye(outputs), 3))(x, scale, 2.5)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def decided(target, tables, state_bits: int, rate: float, metric, boundary: int, reach: int) -> np.ndarray:
    """States of the search in words: the cheapest path's errors move the targets of the next chunk for all paths, each
    path's own those within the chunk, and paths with another past than its ``reach`` chunks back are given up."""
    outputs = len(target)
    bits = [*new_bits(rate, outputs).tolist(), int(rate)]
    paths, moved, start = {boundary: (0.0, [], [], [boundary])}, np.array(target), 0
    for t in range(outputs):
        if t and t % CHUNK == 0:
            start = t
            _, _, errors, groups = min(paths.values(), key=lambda path: path[0])
            moved[t : t + CHUNK] = target[t : t + CHUNK] - metric.pull[t : t + CHUNK, :t] @ np.array(errors, np.float32)
            if (then := t - reach * CHUNK) >= 0:
                paths = {group: path for group, path in paths.items() if path[3][then] == groups[then]}
        found: dict[int, tuple[float, list[int], list[float], list[int]]] = {}
        for group, (cost, states, errors, groups) in paths.items():
            goal = moved[t] - sum(metric.pull[t, s] * errors[s] for s in range(start, t))
            for symbol in range(1 << bits[t]):
                state = (group << bits[t]) | symbol
                value, after = tables[bits[t]][state], state & ((1 << (state_bits - bits[t + 1])) - 1)
                total = cost + (metric.weight[t] * (goal - value)) ** 2
                if after not in found or total < found[after][0]:
                    found[after] = total, [*states, state], [*errors, value - target[t]], [*groups, after]
        paths = found
    return np.array(paths[boundary][1])


@pytest.mark.parametrize(
    ("state_bits", "rate", "outputs", "reach"),
    [(4, 1, 70, 2), (6, 1, 70, 2), (6, 2, 83, 1), (5, 1.5, 71, 2), (6, 0.5, 90, 4)],
)
def test_decided_search_follows_the_cheapest_path(state_bits, rate, outputs, reach):
    bits = {int(rate), int(rate) + (rate % 1 > 0)}
    generator = np.random.default_rng(0)
    tables = {own: generator.standard_normal(1 << state_bits).astype(np.float32) for own in bits}
    metric = factor_metric(coupled(outputs), 0)
    search = DecidedSearch(state_bits, rate, tables, metric, np.arange(outputs))
    for boundary in range(1 << (state_bits - int(rate))):
        target = generator.standard_normal(outputs).astype(np.float32)
        expected = decided(target, tables, state_bits, rate, metric, boundary, reach)
        assert np.array_equal(search(target, np.ones(outputs, np.float32), boundary), expected)
