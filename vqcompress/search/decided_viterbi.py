"""Viterbi search under a metric that couples the outputs, whose paths share one past: half of the time of
`vqcompress.search.coupled_viterbi`, for three quarters of its gain (``benchmarks/output_search.py``).

The targets of weights are moved by the errors of those before them (`OutputMetric`). Within a chunk of weights each
path has its own errors. Between chunks the cheapest path is followed back, and its errors move the targets of the next
chunk for all paths (delayed decision feedback: Duel-Hallen, Heegard 1989, IEEE Trans. Commun. 37). Paths that have
another past than the cheapest one a few constraint lengths back are given up, because the errors of what they would
lead to are not those that their targets were moved by.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vqcompress.search.coupled_viterbi import CoupledViterbi, OutputMetric
from vqcompress.search.trellis_steps import kinds, steps
from vqcompress.search.viterbi import INFINITE

CHUNK = 16  # weights whose targets are moved by one decision
CONSTRAINT_LENGTHS = 5  # after which all paths must have one past


class DecidedViterbi(CoupledViterbi):
    """`CoupledViterbi` whose paths share one past."""

    def _made(self, rate: float) -> DecidedSearch:
        return DecidedSearch(self._state_bits, rate, self._tables, self._metric, self._turn)


class DecidedSearch:
    """Searches one trellis under ``metric``. ``tables`` hold ``[2**state_bits]`` float32 by new bits, in the order of
    states; ``places [outputs]`` are those of the weights in the column."""

    def __init__(
        self,
        state_bits: int,
        rate: float,
        tables: Mapping[int, np.ndarray],
        metric: OutputMetric,
        places: np.ndarray,
    ) -> None:
        from vqcompress.search.decided_loops import compiled_decide, compiled_forward
        from vqcompress.search.viterbi_loops import compiled_traceback  # these import numba

        self._state_bits, self._metric = state_bits, metric
        made = steps(state_bits, rate)
        self._kind = kinds(places, len(places), rate)
        self._own = np.array([step.own for step in made])[self._kind]
        self._following = np.array([step.following for step in made])[self._kind]
        self._tables = tuple(
            np.ascontiguousarray(tables[step.own].reshape(step.sizes).transpose(2, 0, 1)) for step in made
        )
        self._values = np.stack([tables[step.own] for step in made])
        self._ahead = _ahead(metric.pull)
        self._forward, self._traceback = compiled_forward(state_bits, rate, CHUNK), compiled_traceback()
        self._decide = compiled_decide(CHUNK)
        groups, outputs = 1 << (state_bits - int(rate)), len(places)
        self._best, self._back = np.empty(groups, np.float32), np.empty((outputs, groups), np.uint8)
        self._moves = np.empty((2, groups, CHUNK), np.float32)
        reach = int(np.ceil(CONSTRAINT_LENGTHS * state_bits / (self._own.mean() * CHUNK)))
        self._pasts = np.empty((2, reach, groups), np.int32)

    def __call__(self, target: np.ndarray, scale: np.ndarray, boundary: int) -> np.ndarray:
        """States ``[outputs]`` (int64) of a low-cost path with ``boundary`` at both ends."""
        outputs, metric = len(target), self._metric
        errors, moved, states = np.zeros(outputs, np.float32), np.empty_like(target), np.empty(outputs, np.int64)
        self._best.fill(INFINITE)
        self._best[boundary] = 0
        for start in range(0, outputs, CHUNK):
            self._decide(
                target, scale, metric.pull, self._own, self._following, self._kind, self._values, self._state_bits,
                start, self._best, self._back, self._pasts, errors, moved,
            )  # fmt: skip
            chunk = slice(start, start + CHUNK)
            self._moves[0].fill(0)
            self._forward(
                target[chunk], moved[chunk], scale[chunk], metric.weight[chunk], self._kind[chunk], self._ahead[chunk],
                *self._tables, self._best, self._back[chunk], self._moves,
            )  # fmt: skip
        self._traceback(self._back, boundary, self._own, self._following, self._state_bits, states)
        return states


def _ahead(pull: np.ndarray) -> np.ndarray:
    """How far each weight's error moves the targets of its chunk, ``[outputs, CHUNK]``."""
    ahead = np.zeros((len(pull), CHUNK), np.float32)
    for start in range(0, len(pull), CHUNK):
        own = pull[start : start + CHUNK, start : start + CHUNK]
        ahead[start : start + CHUNK, : len(own)] = own.T
    return ahead
