"""Viterbi search for tail-biting trellis codes on one CPU thread, compiled with numba.

Viterbi 1967. For the bit-shift trellis see Tseng et al. 2024, QTIP, arXiv 2406.11235, section 3.2. A state is the last
``L`` bits of the stream. Each weight shifts ``k`` bits in. The ``2**k`` states with the same low ``L - k`` bits form a
group; they have the same successors, so only the cheapest of them is kept. This takes ``2**L`` multiply-adds and
comparisons per weight.

A circular stream must end with the bits it starts from. This boundary is chosen by a short free search across the seam
(wrap-around decoding: Shao, Lin, Fossorier 2003, Two decoding algorithms for tailbiting codes). Then the whole column
is searched exactly for that boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vqcompress.machine_code import compiled
from vqcompress.search.alternating_steps import arranged_tables, kinds

SEAM = 32  # weights on either side of the seam in the search for the boundary
INFINITE = np.float32(1e30)
LANES = 8  # floats per vector instruction


class CpuViterbi:
    """Searches columns of ``outputs`` weights. It reuses its buffers between calls, so use one per thread.

    ``tables`` holds the values ``[2**state_bits]`` by how many bits a weight adds. ``phase`` in ``[0, outputs)`` is the
    weight where the circular search starts. Another phase gives a different, equally good code.
    """

    def __init__(self, outputs: int, state_bits: int, tables: Mapping[int, Tensor], phase: int = 0) -> None:
        self._turn = np.roll(np.arange(outputs), -phase)
        self._tables = {bits: table.float().numpy() for bits, table in tables.items()}
        self._state_bits = state_bits
        self._searches: dict[float, Search | HalfRateSearch] = {}

    def __call__(self, target: Tensor, scale: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Codes for ``target [outputs]`` under the metric ``sum (target - scale * value)**2``.

        ``scale [outputs]`` is float32, ``rate`` a multiple of 1/2. Returns symbols uint8 ``[outputs]`` (the new bits of
        each weight) and the unscaled values float32 ``[outputs]`` they decode to. Needs
        ``outputs * rate >= state_bits``.
        """
        x, r, turn, search = target.numpy(), scale.numpy(), self._turn, self._search(rate)
        boundary = self._boundary(x, r, rate)
        return self._unturned(search(x[turn], r[turn], boundary, turn), rate)

    def _boundary(self, x: np.ndarray, r: np.ndarray, rate: float) -> int:
        """The bits that the first weight of the search finds, by a free search across the seam."""
        # Half a bit a weight: as many bits as at one bit.
        reach, search = min(SEAM if rate >= 1 else 2 * SEAM, len(self._turn)), self._search(rate)
        seam = np.concatenate([self._turn[len(self._turn) - reach :], self._turn[:reach]])
        return search.before(search(x[seam], r[seam], places=seam)[reach], seam[reach])

    def _search(self, rate: float) -> Search | HalfRateSearch:
        """The search at one rate, made once."""
        if rate not in self._searches:
            length = max(len(self._turn), 4 * SEAM)
            self._searches[rate] = (
                HalfRateSearch(self._state_bits, rate, self._tables, len(self._turn), length)
                if rate % 1
                else Search(self._state_bits, int(rate), self._tables[int(rate)], length)
            )
        return self._searches[rate]

    def _unturned(self, states: np.ndarray, rate: float) -> tuple[Tensor, Tensor]:
        """Symbols and values of ``states``, which are in the order of the search."""
        turn, low = self._turn, int(rate)
        symbols, values = np.empty(len(turn), np.uint8), np.empty(len(turn), np.float32)
        symbols[turn], values[turn] = states & ((1 << low) - 1), self._tables[low][states]
        if rate % 1:
            more = turn % 2 == 1
            symbols[turn[more]] = states[more] & ((2 << low) - 1)
            values[turn[more]] = self._tables[low + 1][states[more]]
        return torch.from_numpy(symbols), torch.from_numpy(values)


class Search:
    """Exact search of one trellis: ``table [2**state_bits]`` float32, sequences of up to ``length`` weights.

    Needs ``state_bits >= 2 * rate``.
    """

    def __init__(self, state_bits: int, rate: int, table: np.ndarray, length: int) -> None:
        self._rate = rate
        self._table = np.ascontiguousarray(_by_branch(table, state_bits, rate))
        self._forward, self._traceback = compiled_forward(state_bits, rate), compiled_traceback()
        self._best = np.empty(1 << (state_bits - rate), np.float32)
        self._back = np.empty((length, len(self._best)), np.uint8)

    def before(self, state: int, place: int) -> int:
        """The bits of ``state`` that the weight at ``place`` in the column found there."""
        return int(state) >> self._rate

    def __call__(
        self, target: np.ndarray, scale: np.ndarray, boundary: int = -1, places: np.ndarray | None = None
    ) -> np.ndarray:
        """States ``[n]`` (int64) of the cheapest path for ``target [n]``, metric ``(target - scale * value)**2``.

        ``boundary`` fixes the ``L - k`` bits before the first weight and after the last; -1 leaves both ends free.
        ``places``, where the weights are in the column, do not matter at a whole-number rate.
        """
        states = np.empty(len(target), np.int64)
        self._best.fill(0.0 if boundary < 0 else INFINITE)
        self._best[boundary] = 0.0
        self._forward(target, scale, self._table, self._best, self._back)
        self._traceback(self._back, boundary if boundary >= 0 else int(self._best.argmin()), self._rate, states)
        return states


class HalfRateSearch:
    """The same at a half-integer rate, with ``tables`` by new bits, in columns of ``outputs`` weights.

    Needs ``state_bits >= 2 * rate``.
    """

    def __init__(
        self, state_bits: int, rate: float, tables: Mapping[int, np.ndarray], outputs: int, length: int
    ) -> None:
        from vqcompress.search.alternating_loops import compiled_forward, compiled_traceback  # these import numba

        self._state_bits, self._rate, self._low, self._outputs = state_bits, rate, int(rate), outputs
        self._tables = arranged_tables(state_bits, rate, tables)
        self._forward, self._traceback = compiled_forward(state_bits, rate), compiled_traceback()
        self._best = np.empty(1 << (state_bits - self._low), np.float32)
        self._back = np.empty((length, len(self._best)), np.uint8)

    def before(self, state: int, place: int) -> int:
        """The bits of ``state`` that the weight at ``place`` in the column found there."""
        return int(state) >> (self._low + int(place) % 2)

    def __call__(
        self, target: np.ndarray, scale: np.ndarray, boundary: int = -1, places: np.ndarray | None = None
    ) -> np.ndarray:
        """As `Search`; ``places [n]`` are those of the weights in the column, all of it if ``None``."""
        places = np.arange(len(target)) if places is None else places
        own, following = self._low + places % 2, self._low + (places + 1) % self._outputs % 2
        states = np.empty(len(target), np.int64)
        self._best.fill(0.0 if boundary < 0 else INFINITE)
        self._best[boundary] = 0.0
        self._forward(target, scale, kinds(places, self._outputs, self._rate), *self._tables, self._best, self._back)
        last = boundary if boundary >= 0 else int(self._best[: 1 << (self._state_bits - following[-1])].argmin())
        self._traceback(self._back, last, own, following, self._state_bits, states)
        return states


def _by_branch(table: np.ndarray, state_bits: int, rate: int) -> np.ndarray:
    """The table in the order in which a step reads it: state = (branch, stem, symbol) from high bits to low."""
    branches = 1 << rate
    by_branch = table.reshape(branches, -1, branches)
    return by_branch.transpose(2, 0, 1) if _stems_in_lanes(state_bits, rate) else by_branch


def _stems_in_lanes(state_bits: int, rate: int) -> bool:
    """Whether to vectorize over stems (the bits between the oldest k and the newest k) instead of over symbols."""
    return state_bits - 2 * rate >= LANES.bit_length() - 1 or rate < 5


@lru_cache(maxsize=64)
def compiled_forward(state_bits: int, rate: int) -> Callable[..., None]:
    """The forward pass for one trellis, compiled once per process and kept in numba's cache on disk.

    Signature ``(target [n], scale [n], table, best [groups], back [>= n, groups] uint8)``: ``best`` is the cost of each
    group, before the first weight on entry and after the last on return. ``back`` receives the chosen branches.
    """
    make_forward = _forward_over_stems if _stems_in_lanes(state_bits, rate) else _forward_over_symbols
    return fast(make_forward(1 << rate, 1 << (state_bits - 2 * rate)))


@lru_cache(maxsize=1)
def compiled_traceback() -> Callable[..., None]:
    """Signature ``(back [>= n, groups], last group, rate, states [n] int64)``; fills ``states``."""
    return fast(_traceback)


def fast(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` compiled, its sums in any order, so that inner loops are vectorized."""
    return compiled(nogil=True, fastmath=True, error_model="numpy")(function)


# The two forward passes compute the same result and differ in the dimension that is vectorized. Their sizes are closure
# constants, so that LLVM unrolls and vectorizes the inner loops.


def _forward_over_stems(branches: int, stems: int) -> Callable[..., None]:
    """Vectorized over stems, with ``table [symbols, branches, stems]``."""

    def forward(target, scale, table, best, back):  # type: ignore[no-untyped-def]
        low, arg = np.empty((branches, stems), np.float32), np.empty((branches, stems), np.int32)
        for t in range(len(target)):
            x, r = target[t], scale[t]
            for symbol in range(branches):
                for stem in range(stems):
                    error = x - r * table[symbol, 0, stem]
                    least, chosen = best[stem] + error * error, np.int32(0)
                    for branch in range(1, branches):
                        error = x - r * table[symbol, branch, stem]
                        cost = best[branch * stems + stem] + error * error
                        if cost < least:
                            least, chosen = cost, np.int32(branch)
                    low[symbol, stem], arg[symbol, stem] = least, chosen
            for stem in range(stems):
                for symbol in range(branches):
                    best[stem * branches + symbol] = low[symbol, stem]
            for stem in range(stems):
                for symbol in range(branches):
                    back[t, stem * branches + symbol] = arg[symbol, stem]

    return forward


def _forward_over_symbols(branches: int, stems: int) -> Callable[..., None]:
    """Vectorized over symbols, with ``table [branches, stems, symbols]``."""

    def forward(target, scale, table, best, back):  # type: ignore[no-untyped-def]
        low, arg = np.empty((stems, branches), np.float32), np.empty((stems, branches), np.int32)
        for t in range(len(target)):
            x, r = target[t], scale[t]
            for stem in range(stems):
                for symbol in range(branches):
                    error = x - r * table[0, stem, symbol]
                    low[stem, symbol], arg[stem, symbol] = best[stem] + error * error, 0
                for branch in range(1, branches):
                    so_far = best[branch * stems + stem]
                    for symbol in range(branches):
                        error = x - r * table[branch, stem, symbol]
                        cost = so_far + error * error
                        if cost < low[stem, symbol]:
                            low[stem, symbol], arg[stem, symbol] = cost, branch
            for stem in range(stems):
                for symbol in range(branches):
                    best[stem * branches + symbol] = low[stem, symbol]
                    back[t, stem * branches + symbol] = arg[stem, symbol]

    return forward


def _traceback(back, group, rate, states):  # type: ignore[no-untyped-def]
    for t in range(len(states) - 1, -1, -1):
        states[t] = back[t, group] * back.shape[1] + group
        group = states[t] >> rate
