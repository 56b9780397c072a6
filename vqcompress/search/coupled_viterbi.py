"""Viterbi search under a metric that couples the outputs: later weights compensate for the errors of earlier ones.

The metric is ``eᵀ G e`` for the error ``e`` of a whole column. With ``G = V Vᵀ``, ``V`` upper triangular, it is ``sum_t
V_tt² (e_t + sum_{s<t} V_st e_s / V_tt)²``: the target of each weight is moved by the errors before it. A trellis search
has not decided those errors yet, so every surviving path keeps its last errors and has its own targets (per-survivor
processing: Raheli, Polydoros, Tzou 1995, IEEE Trans. Commun. 43). Errors further back are the same for all paths:
paths with other errors there are discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vqcompress.machine_code import compiled
from vqcompress.search.trellis_steps import Step, kinds, steps
from vqcompress.search.viterbi import INFINITE, CpuViterbi

MEMORY = 64  # errors that each path keeps
CHUNK = 8  # weights searched between two decisions; a decision is therefore at least ``MEMORY - CHUNK`` weights back

_fast = partial(compiled, nogil=True, fastmath=True, error_model="numpy")


@dataclass(frozen=True)
class OutputMetric:
    """A factored metric, float32, in the order in which the search visits weights (see `factor_metric`).

    ``pull [outputs, outputs]``, strictly lower triangular: how far each weight's target is moved per unit of each
    earlier error. ``weight [outputs]``: the square root of the cost per squared error to that target, 1 on average.
    """

    pull: np.ndarray
    weight: np.ndarray


def factor_metric(moment: Tensor, phase: int) -> OutputMetric:
    """Factor ``moment [outputs, outputs]``, positive definite, for a search that starts at ``phase``."""
    turned = moment.double().roll((-phase, -phase), (0, 1))
    upper = torch.linalg.cholesky(turned.flip(0, 1)).flip(0, 1)
    weight = upper.diagonal()
    pull = (upper / weight).t().tril(-1)
    return OutputMetric(pull.float().numpy(), (weight / weight.mean()).float().numpy())


class CoupledViterbi(CpuViterbi):
    """`CpuViterbi` under ``metric``. The search is greedy where `CpuViterbi` is exact: paths that merge can have
    different later targets."""

    def __init__(
        self, outputs: int, state_bits: int, tables: Mapping[int, Tensor], phase: int, metric: OutputMetric
    ) -> None:
        super().__init__(outputs, state_bits, tables, phase)
        self._metric = metric
        self._weight = np.empty_like(metric.weight)
        self._weight[self._turn] = metric.weight
        self._coupled: dict[float, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {}

    def __call__(self, target: Tensor, scale: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Codes for ``target [outputs]`` whose error ``e`` has a small ``eᵀ G e``; see `CpuViterbi`."""
        if rate not in self._coupled:
            self._coupled[rate] = self._made(rate)
        x, r, weight, turn = target.numpy(), scale.numpy(), self._weight, self._turn
        boundary = self._boundary(x * weight, r * weight, rate)
        return self._unturned(self._coupled[rate](x[turn], r[turn], boundary), rate)

    def _made(self, rate: float) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
        """``(target [outputs], scale [outputs], boundary)``, in the order of the search -> states."""
        return partial(CoupledSearch(self._state_bits, rate, self._tables, self._metric), places=self._turn)


class CoupledSearch:
    """Searches one trellis under ``metric``. ``tables`` hold ``[2**state_bits]`` float32 by new bits, in the order of
    states."""

    def __init__(self, state_bits: int, rate: float, tables: Mapping[int, np.ndarray], metric: OutputMetric) -> None:
        from vqcompress.search.viterbi_loops import compiled_traceback  # imports numba

        self._state_bits, self._rate, self._metric = state_bits, rate, metric
        self._steps = steps(state_bits, rate)
        self._tables = [
            np.ascontiguousarray(tables[step.own].reshape(step.sizes).transpose(2, 0, 1)) for step in self._steps
        ]
        self._near = _near(metric.pull)
        self._forward, self._traceback = [compiled_forward(step) for step in self._steps], compiled_traceback()
        self._give_up = compiled_give_up()
        groups, outputs = 1 << (state_bits - int(rate)), len(metric.weight)
        self._best, self._back = np.empty(groups, np.float32), np.empty((outputs, groups), np.uint8)
        self._errors = np.empty((2, groups, MEMORY), np.float32)

    def __call__(
        self, target: np.ndarray, scale: np.ndarray, boundary: int, places: np.ndarray | None = None
    ) -> np.ndarray:
        """States ``[outputs]`` (int64) of a low-cost path with ``boundary`` at both ends.

        ``places [outputs]`` are those of the weights in the column, in sequence if ``None``.
        """
        outputs = len(target)
        kind = kinds(np.arange(outputs) if places is None else places, outputs, self._rate)
        own = np.array([step.own for step in self._steps])[kind]
        states, errors, settled = np.empty(outputs, np.int64), np.empty(outputs, np.float32), 0
        self._best.fill(INFINITE)
        self._best[boundary] = 0
        self._errors.fill(0)
        for start in range(0, outputs, CHUNK):
            chunk = slice(start, min(start + CHUNK, outputs))
            if start + CHUNK - MEMORY > settled:
                groups = 1 << (self._state_bits - own[start])
                best, past = self._best[:groups], self._errors[start % 2, :groups]
                decided = past[best.argmin(), settled % MEMORY :][:CHUNK].copy()
                self._give_up(past, settled % MEMORY, decided, best)
                errors[settled : settled + CHUNK] = decided
                settled += CHUNK
            moved = target[chunk] - self._metric.pull[chunk, :settled] @ errors[:settled]
            self._search(target, moved, scale, kind, chunk)
        self._traceback(self._back, boundary, own, np.roll(own, -1), self._state_bits, states)
        return states

    def _search(self, target: np.ndarray, moved: np.ndarray, scale: np.ndarray, kind: np.ndarray, chunk: slice) -> None:
        """Search the weights of ``chunk``, each run of one kind of step by itself."""
        ends = [*(np.flatnonzero(np.diff(kind[chunk])) + chunk.start + 1), chunk.stop]
        for first, last in pairwise([chunk.start, *ends]):
            run, one = slice(first, last), kind[first]
            self._forward[one](
                target[run], moved[first - chunk.start : last - chunk.start], scale[run], self._metric.weight[run],
                self._near[run], self._tables[one], self._best, self._back[run], self._errors, first,
            )  # fmt: skip


def _near(pull: np.ndarray) -> np.ndarray:
    """The part of ``pull`` for the errors that each path keeps, ``[outputs, MEMORY]``, error ``s`` at index
    ``s % MEMORY``."""
    near = np.zeros((len(pull), MEMORY), np.float32)
    for t in range(len(pull)):
        settled = max(0, t // CHUNK * CHUNK + CHUNK - MEMORY)
        remembered = np.arange(settled, t)
        near[t, remembered % MEMORY] = pull[t, remembered]
    return near


@lru_cache(maxsize=64)
def compiled_forward(step: Step) -> Callable[..., None]:
    """Weights of one kind of step, one after the other.

    Signature ``(target [n], moved [n], scale [n], weight [n], near [n, MEMORY], table [symbols, branches, stems],
    best [groups], back [>= n, groups] uint8, errors [2, groups, MEMORY], first)``: searches ``n`` weights starting at
    ``first``.

    ``moved`` is ``target`` moved by the errors already decided. ``errors`` holds the later ones; its two halves
    alternate as input and output of a step.
    """
    return _fast()(_forward(*step.sizes))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def compiled_give_up() -> Callable[..., None]:
    """Signature ``(errors [groups, MEMORY], place, decided [CHUNK], best [groups])``: sets the cost of paths whose
    errors from ``place`` on differ from ``decided`` to infinity."""
    return _fast()(_give_up)  # type: ignore[no-any-return]


def _forward(branches: int, stems: int, symbols: int) -> Callable[..., None]:
    groups, memory = branches * stems, MEMORY

    def forward(target, moved, scale, weight, near, table, best, back, errors, first):  # type: ignore[no-untyped-def]
        low, arg = np.empty((symbols, stems), np.float32), np.empty((symbols, stems), np.int32)
        goal = np.empty(groups, np.float32)
        for t in range(len(target)):
            w, r = weight[t], weight[t] * scale[t]
            old, new, place = errors[(first + t) % 2], errors[(first + t + 1) % 2], (first + t) % memory
            kept = min(first + t, memory)
            for group in range(groups):
                pull = np.float32(0)
                for k in range(kept):
                    pull += near[t, k] * old[group, k]
                goal[group] = w * (moved[t] - pull)
            for symbol in range(symbols):
                for stem in range(stems):
                    error = goal[stem] - r * table[symbol, 0, stem]
                    least, chosen = best[stem] + error * error, np.int32(0)
                    for branch in range(1, branches):
                        before = branch * stems + stem
                        error = goal[before] - r * table[symbol, branch, stem]
                        cost = best[before] + error * error
                        if cost < least:
                            least, chosen = cost, np.int32(branch)
                    low[symbol, stem], arg[symbol, stem] = least, chosen
            for stem in range(stems):
                for symbol in range(symbols):
                    branch, group = arg[symbol, stem], stem * symbols + symbol
                    best[group], back[t, group] = low[symbol, stem], branch
                    before = branch * stems + stem
                    for k in range(kept):
                        new[group, k] = old[before, k]
                    new[group, place] = scale[t] * table[symbol, branch, stem] - target[t]

    return forward


def _give_up(errors, place, decided, best):  # type: ignore[no-untyped-def]
    for group in range(len(best)):
        for k in range(len(decided)):
            if errors[group, place + k] != decided[k]:
                best[group] = INFINITE
