"""Trellis searches against brute force over every bit stream."""

from __future__ import annotations

import itertools
import time
import timeit
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.reference_viterbi import search_states
from vqcompress.formats.trellis import window_states
from vqcompress.formats.trellis_table import value_table
from vqcompress.search.coupled_viterbi import CoupledSearch, CoupledViterbi, factor_metric
from vqcompress.search.decided_viterbi import DecidedViterbi
from vqcompress.search.viterbi import CpuViterbi, Search

TOYS = [(4, 1, 6), (5, 2, 4), (6, 2, 5), (6, 3, 4), (10, 5, 2)]  # state bits, rate, weights


def toy(state_bits: int, length: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    table = rng.standard_normal(1 << state_bits).astype(np.float32)
    return rng.standard_normal(length).astype(np.float32), rng.uniform(0.5, 2, length).astype(np.float32), table


def circular_costs(x, r, table, state_bits, rate):
    """Boundary and cost of every circular stream."""
    streams = torch.tensor(list(itertools.product(range(1 << rate), repeat=len(x))))
    states = window_states(streams, rate, state_bits)
    costs = torch.from_numpy((x - r * table[states.numpy()]) ** 2).sum(1)
    return states[:, 0] >> rate, costs


def path_cost(states, x, r, table) -> float:
    return float(((x - r * table[np.asarray(states)]) ** 2).sum())


@pytest.mark.parametrize(("state_bits", "rate", "length"), TOYS)
@pytest.mark.parametrize("kind", ["compiled", "reference"])
def test_fixed_boundary_is_the_optimum(state_bits, rate, length, kind):
    x, r, table = toy(state_bits, length)
    boundaries, costs = circular_costs(x, r, table, state_bits, rate)
    search = Search(state_bits, rate, {rate: table}, length, length)
    for boundary in range(0, 1 << (state_bits - rate), 3):
        if kind == "compiled":
            states = search(x, r, boundary)
        else:
            states = search_states(*map(torch.from_numpy, (x, r, table)), rate, boundary).numpy()
        best = float(costs[boundaries == boundary].min())
        assert path_cost(states, x, r, table) == pytest.approx(best, rel=1e-5)
        assert states[0] >> rate == boundary == states[-1] & ((1 << (state_bits - rate)) - 1)


@pytest.mark.parametrize(("state_bits", "rate", "length"), [(4, 1, 6), (6, 2, 4), (6, 3, 3)])
def test_free_ends_are_the_optimum(state_bits, rate, length):
    x, r, table = toy(state_bits, length)
    groups = 1 << (state_bits - rate)
    paths = []
    for start, symbols in itertools.product(range(groups), itertools.product(range(1 << rate), repeat=length)):
        states, group = [], start
        for symbol in symbols:
            states.append(group << rate | symbol)
            group = states[-1] & (groups - 1)
        paths.append(states)
    best = min(path_cost(states, x, r, table) for states in paths)
    found = Search(state_bits, rate, {rate: table}, length, length)(x, r)
    assert path_cost(found, x, r, table) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    ("state_bits", "rate"), [(8, 1), (8, 3), (8, 4), (10, 5), (12, 2), (12, 5), (12, 6), (14, 5), (14, 7)]
)
def test_compiled_equals_reference(state_bits, rate):
    x, r, _ = toy(4, 40)
    table = value_table(state_bits, rate, 0.1).float()
    compiled = Search(state_bits, rate, {rate: table.numpy()}, 40, 40)(x, r, 5)
    reference = search_states(torch.from_numpy(x), torch.from_numpy(r), table, rate, 5)
    np.testing.assert_array_equal(compiled, reference.numpy())


def test_no_rate_takes_much_longer_than_another():
    """The work is ``2**state_bits`` comparisons a weight at every rate; a loop that is not vectorized shows here."""
    state_bits, length = 14, 128
    x, r, table = toy(state_bits, length)
    seconds = []
    for rate in (3, 4, 5, 6):
        search = Search(state_bits, rate, {rate: table}, length, length)
        search(x, r, 0)
        seconds.append(min(timeit.repeat(partial(search, x, r, 0), timer=time.thread_time, number=4, repeat=5)))
    assert max(seconds) < 3 * min(seconds)


def test_seam_boundary_is_nearly_the_best():
    """The boundary is chosen by a heuristic: against all boundaries it loses less than two percent."""
    state_bits, rate, outputs = 8, 2, 64
    table = value_table(state_bits, rate, 0.0)
    columns, ones = torch.randn(20, outputs, generator=torch.Generator().manual_seed(0)), torch.ones(outputs)
    quick, exact = (
        CpuViterbi(outputs, state_bits, {rate: table}),
        Search(state_bits, rate, {rate: table.float().numpy()}, outputs, outputs),
    )
    found = best = 0.0
    for x in columns:
        found += float((quick(x, ones, rate)[1] - x).square().sum())
        boundaries = range(1 << (state_bits - rate))
        best += min(
            path_cost(exact(x.numpy(), ones.numpy(), b), x.numpy(), 1, table.float().numpy()) for b in boundaries
        )
    assert best <= found * 1.000001
    assert found <= best * 1.02


@settings(deadline=None, max_examples=60)
@given(outputs=st.integers(8, 80), rate=st.integers(1, 4), phase=st.integers(0, 7), seed=st.integers(0, 999))
def test_symbols_decode_to_the_values(outputs, rate, phase, seed):
    generator = torch.Generator().manual_seed(seed)
    target, scale = torch.randn(outputs, generator=generator), torch.rand(outputs, generator=generator)
    table = value_table(8, rate, 0.0)
    symbols, values = CpuViterbi(outputs, 8, {rate: table}, phase)(target, scale, rate)
    assert torch.equal(table.float()[window_states(symbols.int(), rate, 8)], values)
    assert int(symbols.max()) < 1 << rate


def test_phase_moves_the_cut():
    x, ones = torch.randn(200, generator=torch.Generator().manual_seed(1)), torch.ones(200)
    tables = {2: value_table(8, 2, 0.0)}
    first, second = (CpuViterbi(200, 8, tables, phase)(x, ones, 2)[1] for phase in (0, 77))
    assert (first - x).square().mean() == pytest.approx(float((second - x).square().mean()), rel=0.05)


def coupled(outputs: int, seed: int = 0) -> torch.Tensor:
    """A positive definite ``[outputs, outputs]``: outputs that add up in a few ways, as those do that the next layer
    sums."""
    mix = torch.randn(outputs, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mix @ mix.t() / 8 + 0.1 * torch.eye(outputs, dtype=torch.float64)


@pytest.mark.parametrize("phase", [0, 5])
def test_pulls_and_weights_are_the_metric(phase):
    outputs, moment = 40, coupled(40)
    plan = factor_metric(moment, phase)
    errors = torch.randn(outputs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    turned = errors.roll(-phase)
    after = turned + torch.from_numpy(plan.pull).double() @ turned  # error against the moved targets
    cost = (torch.from_numpy(plan.weight).double() * after).square().sum()
    unit = float(torch.linalg.cholesky(moment.roll((-phase, -phase), (0, 1)).flip(0, 1)).diagonal().mean()) ** 2
    assert float(cost) * unit == pytest.approx(float(errors @ moment @ errors), rel=1e-4)


@pytest.mark.parametrize(("state_bits", "rate", "outputs"), TOYS)
def test_coupled_paths_are_nearly_the_best(state_bits, rate, outputs):
    _, _, table = toy(state_bits, outputs)
    found = best = 0.0
    for seed in range(20):
        moment, target = coupled(outputs, seed), np.random.default_rng(seed).standard_normal(outputs).astype(np.float32)
        search, ones = (
            CoupledSearch(state_bits, rate, {rate: table}, factor_metric(moment, 0)),
            np.ones(outputs, np.float32),
        )
        streams = torch.tensor(list(itertools.product(range(1 << rate), repeat=outputs)))
        states = window_states(streams, rate, state_bits)
        errors = torch.from_numpy(table[states.numpy()] - target).double()
        costs, boundaries = ((errors @ moment) * errors).sum(1), states[:, 0] >> rate
        for boundary in boundaries.unique().tolist():
            chosen = search(target, ones, boundary)
            assert chosen[0] >> rate == boundary == chosen[-1] & ((1 << (state_bits - rate)) - 1)
            error = torch.from_numpy(table[chosen] - target).double()
            found += float(error @ moment @ error)
            best += float(costs[boundaries == boundary].min())
    assert best <= found * 1.000001
    assert found <= best * 1.1


@pytest.mark.parametrize(
    ("outputs", "phase", "kind", "share"),
    [
        (60, 0, CoupledViterbi, 0.5),
        (200, 77, CoupledViterbi, 0.5),
        (200, 77, DecidedViterbi, 0.5),
        (768, 5, DecidedViterbi, 0.4),
    ],
)
def test_outputs_that_add_up_make_up_for_each_other(outputs, phase, kind, share):
    state_bits, rate = 10, 2
    moment, tables = coupled(outputs), {rate: value_table(state_bits, rate, 0.0)}
    columns, ones = torch.randn(16, outputs, generator=torch.Generator().manual_seed(1)), torch.ones(outputs)
    alone = CpuViterbi(outputs, state_bits, tables, phase)
    together = kind(outputs, state_bits, tables, phase, factor_metric(moment, phase))

    def cost(search):
        errors = torch.stack([search(x, ones, rate)[1] - x for x in columns])
        return float(((errors @ moment.float()) * errors).sum())

    assert cost(together) < share * cost(alone)


def test_outputs_that_cost_alike_are_searched_as_by_themselves():
    outputs, tables = 60, {2: value_table(8, 2, 0.0)}
    x, scale = torch.randn(outputs, generator=torch.Generator().manual_seed(3)), torch.ones(outputs)
    plain = CpuViterbi(outputs, 8, tables, 3)(x, scale, 2)
    found = CoupledViterbi(outputs, 8, tables, 3, factor_metric(2.5 * torch.eye(outputs), 3))(x, scale, 2)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


@pytest.mark.parametrize("rate", [1, 2, 2.5, 3])
def test_what_deciding_early_costs(rate):
    """A longer past in common would cost less here, and more where targets are moved by its errors."""
    outputs, tables = 256, {bits: value_table(10, bits, 0.0) for bits in (1, 2, 3)}
    columns, ones = torch.randn(24, outputs, generator=torch.Generator().manual_seed(3)), torch.ones(outputs)
    searches = (
        CpuViterbi(outputs, 10, tables, 3),
        DecidedViterbi(outputs, 10, tables, 3, factor_metric(2.5 * torch.eye(outputs), 3)),
    )
    exact, decided = (sum(float((search(x, ones, rate)[1] - x).square().sum()) for x in columns) for search in searches)
    assert exact <= decided < 1.1 * exact


@settings(deadline=None, max_examples=40)
@given(
    outputs=st.integers(8, 80), rate=st.integers(1, 4), phase=st.integers(0, 7), seed=st.integers(0, 999),
    kind=st.sampled_from([CoupledViterbi, DecidedViterbi]),
)  # fmt: skip
def test_symbols_decode_to_the_values_of_coupled_outputs_too(outputs, rate, phase, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    target, scale = torch.randn(outputs, generator=generator), torch.rand(outputs, generator=generator)
    table = value_table(8, rate, 0.0)
    search = kind(outputs, 8, {rate: table}, phase, factor_metric(coupled(outputs, seed), phase))
    symbols, values = search(target, scale, rate)
    assert torch.equal(table.float()[window_states(symbols.int(), rate, 8)], values)
    assert int(symbols.max()) < 1 << rate
