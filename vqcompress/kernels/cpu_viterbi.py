"""Viterbi search for tail-biting trellis codes on one CPU thread, compiled with numba.

Viterbi 1967; for the bit-shift trellis see Tseng et al. 2024, QTIP, arXiv 2406.11235, section 3.2. A state is the last
``L`` bits of the stream; a weight appends ``k`` bits, so the ``2**k`` states that share their low ``L - k`` bits share their
successors, and one step is a minimum over them followed by ``2**k`` additions. Cost: ``2**L`` multiply-adds a weight.

A circular stream must end in the bits it starts from. Its boundary is chosen by a short free search across the seam
(Shao et al. 2003, Two decoding algorithms for tailbiting codes, wrap-around decoding), then the whole column is
searched exactly for that boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SEAM = 32  # weights on either side of the seam that choose the boundary


class CpuViterbi:
    """Searches columns of ``rows`` weights; keeps its buffers between calls, so use one per thread.

    ``tables`` holds float values ``[2**state_bits]`` by rate. ``phase`` in ``[0, rows)`` is the weight where the circular
    search starts: another phase gives another, equally good code.
    """

    def __init__(self, rows: int, state_bits: int, tables: Mapping[int, Tensor], phase: int = 0) -> None:
        self._state_bits = state_bits
        self._turn = np.roll(np.arange(rows), -phase)
        self._tables = {rate: table.float().contiguous().numpy() for rate, table in tables.items()}
        self._cost = np.empty(1 << state_bits, np.float32)
        self._back: dict[int, np.ndarray] = {}

    def __call__(self, target: Tensor, scale: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Codes for ``target [rows]`` under the metric ``sum (target - scale * value)**2``.

        ``scale [rows]`` is float32. Returns symbols uint8 ``[rows]`` (the new bits of each weight) and the unscaled
        values float32 ``[rows]`` they decode to. Needs ``rows * rate >= state_bits``.
        """
        table, turn = self._tables[rate], self._turn
        states = np.empty(len(turn), np.int64)
        turned_target, turned_scale = target.numpy()[turn], scale.numpy()[turn]
        back = self._buffer(rate)
        boundary = self._seam_boundary(turned_target, turned_scale, rate)
        compiled_search(self._state_bits, rate)(turned_target, turned_scale, table, boundary, self._cost, back, states)
        symbols, values = np.empty(len(turn), np.uint8), np.empty(len(turn), np.float32)
        symbols[turn], values[turn] = states & ((1 << rate) - 1), table[states]
        return torch.from_numpy(symbols), torch.from_numpy(values)

    def _seam_boundary(self, target: np.ndarray, scale: np.ndarray, rate: int) -> int:
        """The ``L - k`` bits before the first weight, from a free search over the weights around the seam."""
        reach = min(SEAM, len(target))
        around = np.concatenate([np.arange(len(target) - reach, len(target)), np.arange(reach)])
        states = np.empty(2 * reach, np.int64)
        search = compiled_search(self._state_bits, rate)
        search(target[around], scale[around], self._tables[rate], -1, self._cost, self._buffer(rate), states)
        return int(states[reach]) >> rate

    def _buffer(self, rate: int) -> np.ndarray:
        if rate not in self._back:
            length = max(len(self._turn), 2 * min(SEAM, len(self._turn)))
            self._back[rate] = np.empty((length, 1 << (self._state_bits - rate)), np.uint8)
        return self._back[rate]


@lru_cache(maxsize=64)
def compiled_search(state_bits: int, rate: int) -> Callable[..., float]:
    """The search for one trellis, compiled once per process and kept in numba's cache on disk.

    Signature ``(target [n], scale [n], table [2**L], boundary, cost [2**L], back [>= n, 2**(L-k)], states [n]) -> float``.
    ``boundary`` is the value of the ``L - k`` bits before the first weight and, the stream being circular, after the last;
    -1 leaves both ends free. Fills ``states`` (int64) and returns the squared error; ``cost`` and ``back`` are scratch.
    """
    import numba

    return numba.njit(_make_search(state_bits, rate), cache=True, nogil=True, fastmath=True, error_model="numpy")


def _make_search(state_bits: int, rate: int) -> Callable[..., float]:
    branches, groups = 1 << rate, 1 << (state_bits - rate)
    infinite = np.float32(1e30)

    def search(target, scale, table, boundary, cost, back, states):  # type: ignore[no-untyped-def]
        length = len(target)
        best = np.zeros(groups, np.float32)
        chosen = np.empty(groups, np.int32)
        if boundary >= 0:
            best[:] = infinite
            best[boundary] = 0.0
        for t in range(length):
            x, r = target[t], scale[t]
            for group in range(groups):
                for branch in range(branches):
                    error = x - r * table[group * branches + branch]
                    cost[group * branches + branch] = best[group] + error * error
            if t + 1 < length:
                for group in range(groups):
                    low, arg = cost[group], np.int32(0)
                    for branch in range(1, branches):
                        value = cost[branch * groups + group]
                        if value < low:
                            low, arg = value, np.int32(branch)
                    best[group], chosen[group] = low, arg
                for group in range(groups):
                    back[t, group] = chosen[group]
        state, low = 0, np.float32(3e38)
        for candidate in range(branches * groups):
            if (boundary < 0 or candidate % groups == boundary) and cost[candidate] < low:
                state, low = candidate, cost[candidate]
        for t in range(length - 1, -1, -1):
            states[t] = state
            if t > 0:
                group = state >> rate
                state = back[t - 1, group] * groups + group
        return low

    return search
