"""Viterbi search for tail-biting trellis codes on one CPU thread, compiled with numba.

Viterbi 1967; for the bit-shift trellis see Tseng et al. 2024, QTIP, arXiv 2406.11235, section 3.2. A state is the last
``L`` bits of the stream. A weight shifts ``k`` bits in, so the ``2**k`` states that share their low ``L - k`` bits, a group, have the
same future and only the cheapest of them need be kept: ``2**L`` multiply-adds and comparisons a weight.

A circular stream must end in the bits it starts from. Its boundary is chosen by a short free search across the seam
(wrap-around decoding: Shao, Lin, Fossorier 2003, Two decoding algorithms for tailbiting codes), then the whole column
is searched exactly for that boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SEAM = 32  # weights on either side of the seam that choose the boundary
LANES = 8  # floats that one vector instruction takes at once


class CpuViterbi:
    """Searches columns of ``rows`` weights; keeps its buffers between calls, so use one per thread.

    ``tables`` holds the values ``[2**state_bits]`` by rate. ``phase`` in ``[0, rows)`` is the weight where the circular search
    starts: another phase gives another, equally good code.
    """

    def __init__(self, rows: int, state_bits: int, tables: Mapping[int, Tensor], phase: int = 0) -> None:
        reach = min(SEAM, rows)
        self._turn = np.roll(np.arange(rows), -phase)
        self._seam = np.concatenate([self._turn[rows - reach :], self._turn[:reach]])
        self._tables = {rate: table.float().numpy() for rate, table in tables.items()}
        self._searches = {rate: Search(state_bits, rate, table, len(self._seam) + rows) for rate, table in self._tables.items()}

    def __call__(self, target: Tensor, scale: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Codes for ``target [rows]`` under the metric ``sum (target - scale * value)**2``.

        ``scale [rows]`` is float32. Returns symbols uint8 ``[rows]`` (the new bits of each weight) and the unscaled
        values float32 ``[rows]`` they decode to. Needs ``rows * rate >= state_bits``.
        """
        x, r, turn, seam, search = target.numpy(), scale.numpy(), self._turn, self._seam, self._searches[rate]
        boundary = int(search(x[seam], r[seam])[len(seam) // 2]) >> rate
        states = search(x[turn], r[turn], boundary)
        symbols, values = np.empty(len(turn), np.uint8), np.empty(len(turn), np.float32)
        symbols[turn], values[turn] = states & ((1 << rate) - 1), self._tables[rate][states]
        return torch.from_numpy(symbols), torch.from_numpy(values)


class Search:
    """Exact search of one trellis: ``table [2**state_bits]`` float32, sequences of up to ``length`` weights."""

    def __init__(self, state_bits: int, rate: int, table: np.ndarray, length: int) -> None:
        self._table = np.ascontiguousarray(_by_branch(table, state_bits, rate))
        self._run = compiled_search(state_bits, rate)
        self._back = np.empty((length, 1 << (state_bits - rate)), np.uint8)

    def __call__(self, target: np.ndarray, scale: np.ndarray, boundary: int = -1) -> np.ndarray:
        """States ``[n]`` (int64) of the cheapest path for ``target [n]``, metric ``(target - scale * value)**2``.

        ``boundary`` fixes the ``L - k`` bits before the first weight and after the last; -1 leaves both ends free.
        """
        states = np.empty(len(target), np.int64)
        self._run(target, scale, self._table, boundary, self._back, states)
        return states


def _by_branch(table: np.ndarray, state_bits: int, rate: int) -> np.ndarray:
    """The table in the order in which a step reads it: state = (branch, stem, symbol) from high bits to low."""
    branches = 1 << rate
    by_branch = table.reshape(branches, -1, branches)
    return by_branch.transpose(2, 0, 1) if _stems_in_lanes(state_bits, rate) else by_branch


def _stems_in_lanes(state_bits: int, rate: int) -> bool:
    """Whether stems (the bits between the oldest k and the newest k) fill a vector, or else symbols should."""
    return state_bits - 2 * rate >= LANES.bit_length() - 1 or rate < 5


@lru_cache(maxsize=64)
def compiled_search(state_bits: int, rate: int) -> Callable[..., None]:
    """The search for one trellis, compiled once per process and kept in numba's cache on disk.

    Signature ``(target [n], scale [n], table, boundary, back [>= n, groups] uint8, states [n] int64)``; ``back`` is scratch.
    Needs ``state_bits >= 2 * rate``.
    """
    import numba

    compiled = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
    make_step = _step_over_stems if _stems_in_lanes(state_bits, rate) else _step_over_symbols
    return compiled(_make_search(state_bits, rate, compiled(make_step(state_bits, rate))))


def _make_search(state_bits: int, rate: int, step: Callable[..., None]) -> Callable[..., None]:
    branches, groups = 1 << rate, 1 << (state_bits - rate)
    infinite = np.float32(1e30)

    def search(target, scale, table, boundary, back, states):  # type: ignore[no-untyped-def]
        best = np.zeros(groups, np.float32)
        if boundary >= 0:
            best[:] = infinite
            best[boundary] = 0.0
        low, arg = np.empty(groups, np.float32), np.empty(groups, np.int32)
        for t in range(len(target)):
            step(target[t], scale[t], table, best, low, arg, back[t])
        group = boundary
        if boundary < 0:
            group = np.argmin(best)
        for t in range(len(target) - 1, -1, -1):
            states[t] = back[t, group] * groups + group
            group = states[t] >> rate

    return search


def _step_over_stems(state_bits: int, rate: int) -> Callable[..., None]:
    """One weight; vector lanes run over stems, ``table [symbols, branches, stems]``."""
    branches, stems = 1 << rate, 1 << (state_bits - 2 * rate)

    def step(x, r, table, best, low, arg, back):  # type: ignore[no-untyped-def]
        for symbol in range(branches):
            for stem in range(stems):
                error = x - r * table[symbol, 0, stem]
                least, chosen = best[stem] + error * error, np.int32(0)
                for branch in range(1, branches):
                    error = x - r * table[symbol, branch, stem]
                    cost = best[branch * stems + stem] + error * error
                    if cost < least:
                        least, chosen = cost, np.int32(branch)
                low[symbol * stems + stem], arg[symbol * stems + stem] = least, chosen
        for stem in range(stems):
            for symbol in range(branches):
                best[stem * branches + symbol] = low[symbol * stems + stem]
        for stem in range(stems):
            for symbol in range(branches):
                back[stem * branches + symbol] = arg[symbol * stems + stem]

    return step


def _step_over_symbols(state_bits: int, rate: int) -> Callable[..., None]:
    """One weight; vector lanes run over symbols, ``table [branches, stems, symbols]``."""
    branches, stems = 1 << rate, 1 << (state_bits - 2 * rate)

    def step(x, r, table, best, low, arg, back):  # type: ignore[no-untyped-def]
        for stem in range(stems):
            for symbol in range(branches):
                error = x - r * table[0, stem, symbol]
                low[stem * branches + symbol], arg[stem * branches + symbol] = best[stem] + error * error, 0
            for branch in range(1, branches):
                so_far = best[branch * stems + stem]
                for symbol in range(branches):
                    error = x - r * table[branch, stem, symbol]
                    cost = so_far + error * error
                    if cost < low[stem * branches + symbol]:
                        low[stem * branches + symbol], arg[stem * branches + symbol] = cost, branch
        for group in range(branches * stems):
            best[group], back[group] = low[group], arg[group]

    return step
