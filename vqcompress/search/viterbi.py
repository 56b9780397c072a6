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

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vqcompress.search.trellis_steps import arranged_tables, kinds

SEAM = 32  # weights on either side of the seam in the search for the boundary
INFINITE = np.float32(1e30)


class CpuViterbi:
    """Searches columns of ``outputs`` weights. It reuses its buffers between calls, so use one per thread.

    ``tables`` holds the values ``[2**state_bits]`` by how many bits a weight adds. ``phase`` in ``[0, outputs)`` is the
    weight where the circular search starts. Another phase gives a different, equally good code.
    """

    def __init__(self, outputs: int, state_bits: int, tables: Mapping[int, Tensor], phase: int = 0) -> None:
        self._turn = np.roll(np.arange(outputs), -phase)
        self._tables = {bits: table.float().numpy() for bits, table in tables.items()}
        self._state_bits = state_bits
        self._searches: dict[float, Search] = {}

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

    def _search(self, rate: float) -> Search:
        """The search at one rate, made once."""
        if rate not in self._searches:
            length = max(len(self._turn), 4 * SEAM)
            self._searches[rate] = Search(self._state_bits, rate, self._tables, len(self._turn), length)
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
    """Exact search of one trellis in columns of ``outputs`` weights, sequences of up to ``length``.

    ``tables`` hold ``[2**state_bits]`` float32 by the new bits of a weight: one at a whole-number rate, two at a
    half-integer one. Needs ``state_bits >= 2 * rate``.
    """

    def __init__(
        self, state_bits: int, rate: float, tables: Mapping[int, np.ndarray], outputs: int, length: int
    ) -> None:
        from vqcompress.search.viterbi_loops import compiled_forward, compiled_traceback  # these import numba

        self._state_bits, self._rate, self._outputs = state_bits, rate, outputs
        self._low, self._more = int(rate), int(rate % 1 > 0)
        self._tables = arranged_tables(state_bits, rate, tables)
        self._forward, self._traceback = compiled_forward(state_bits, rate), compiled_traceback()
        self._best = np.empty(1 << (state_bits - self._low), np.float32)
        self._back = np.empty((length, len(self._best)), np.uint8)

    def before(self, state: int, place: int) -> int:
        """The bits of ``state`` that the weight at ``place`` in the column found there."""
        return int(state) >> int(self._new_bits(place))

    def __call__(
        self, target: np.ndarray, scale: np.ndarray, boundary: int = -1, places: np.ndarray | None = None
    ) -> np.ndarray:
        """States ``[n]`` (int64) of the cheapest path for ``target [n]``, metric ``(target - scale * value)**2``.

        ``boundary`` fixes the bits before the first weight and after the last; -1 leaves both ends free. ``places
        [n]`` are those of the weights in the column, all of it if ``None``.
        """
        places = np.arange(len(target)) if places is None else places
        own, following = self._new_bits(places), self._new_bits((places + 1) % self._outputs)
        states = np.empty(len(target), np.int64)
        self._best.fill(0.0 if boundary < 0 else INFINITE)
        self._best[boundary] = 0.0
        self._forward(target, scale, kinds(places, self._outputs, self._rate), *self._tables, self._best, self._back)
        last = boundary if boundary >= 0 else int(self._best[: 1 << (self._state_bits - following[-1])].argmin())
        self._traceback(self._back, last, own, following, self._state_bits, states)
        return states

    def _new_bits(self, places: np.ndarray | int) -> np.ndarray:
        """How many bits the weights at ``places`` in the column add."""
        return self._low + self._more * (np.asarray(places) % 2)
