"""The compiled loops of `vqcompress.search.decided_viterbi`. Importing this file imports numba.

Sizes are constants, so that LLVM unrolls and vectorizes the inner loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from vqcompress.machine_code import compiled
from vqcompress.search.trellis_steps import steps
from vqcompress.search.viterbi import INFINITE

_fast = partial(compiled, nogil=True, fastmath=True, error_model="numpy")
_inlined = partial(_fast, inline="always")


@lru_cache(maxsize=64)
def compiled_forward(state_bits: int, rate: float, chunk: int) -> Callable[..., None]:
    """The weights of one chunk.

    Signature ``(target [n], moved [n], scale [n], weight [n], kinds [n], ahead [n, chunk], tables…, best [groups],
    back [>= n, groups] uint8, moves [2, groups, chunk])``, with a table ``[symbols, branches, stems]`` for each of
    `trellis_steps.steps`. ``moved`` is ``target`` moved by the errors before the chunk, ``moves`` how far each
    path's errors in it move the chunk's targets; its two halves alternate as input and output of a weight.
    """
    sizes = [step.sizes for step in steps(state_bits, rate)]
    return _fast()(_one_kind(chunk, *sizes) if len(sizes) == 1 else _three_kinds(chunk, *sizes))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def compiled_decide(chunk: int) -> Callable[..., None]:
    """Move the targets of the chunk from ``start`` on.

    Signature ``(target [n], scale [n], pull [n, n], own [n], following [n], kind [n], values [kinds, states],
    state_bits, start, best [groups], back [n, groups], pasts [2, reach, groups], errors [n], moved [n])``: sets
    ``errors`` of the weights before, ``moved`` of the chunk, and the cost of paths that are given up. ``pasts`` holds,
    for each group that enters the chunk, those that its path entered earlier chunks by, the last one first; its two
    halves alternate.
    """
    return _fast()(_decide(chunk))  # type: ignore[no-any-return]


def _one_kind(chunk: int, sizes: tuple[int, int, int]) -> Callable[..., None]:
    branches, stems, symbols = sizes

    def forward(target, moved, scale, weight, kinds, ahead, table, best, back, moves):  # type: ignore[no-untyped-def]
        low, arg = np.empty(symbols * stems, np.float32), np.empty(symbols * stems, np.int32)
        goal = np.empty(branches * stems, np.float32)
        for t in range(len(target)):
            row = target[t], moved[t], scale[t], weight[t]
            _step(row, ahead[t], table, best, back[t], moves, low, arg, goal, t, chunk, branches, stems, symbols)

    return forward


def _three_kinds(chunk: int, first, second, third) -> Callable[..., None]:  # type: ignore[no-untyped-def]
    (b1, m1, s1), (b2, m2, s2), (b3, m3, s3) = first, second, third
    after, before = max(m1 * s1, m2 * s2, m3 * s3), max(b1 * m1, b2 * m2, b3 * m3)

    def forward(target, moved, scale, weight, kinds, ahead, one, two, three, best, back, moves):  # type: ignore[no-untyped-def]
        low, arg, goal = np.empty(after, np.float32), np.empty(after, np.int32), np.empty(before, np.float32)
        for t in range(len(target)):
            row = target[t], moved[t], scale[t], weight[t]
            if kinds[t] == 0:
                _step(row, ahead[t], one, best, back[t], moves, low, arg, goal, t, chunk, b1, m1, s1)
            elif kinds[t] == 1:
                _step(row, ahead[t], two, best, back[t], moves, low, arg, goal, t, chunk, b2, m2, s2)
            else:
                _step(row, ahead[t], three, best, back[t], moves, low, arg, goal, t, chunk, b3, m3, s3)

    return forward


@_inlined()
def _step(row, ahead, table, best, back, moves, low, arg, goal, t, chunk, branches, stems, symbols):  # type: ignore[no-untyped-def]
    target, moved, scale, weight = row
    old, new, scaled = moves[t % 2], moves[(t + 1) % 2], weight * scale
    for group in range(branches * stems):
        goal[group] = weight * (moved - old[group, t])
    for symbol in range(symbols):
        for stem in range(stems):
            error = goal[stem] - scaled * table[symbol, 0, stem]
            least, chosen = best[stem] + error * error, np.int32(0)
            for branch in range(1, branches):
                error = goal[branch * stems + stem] - scaled * table[symbol, branch, stem]
                cost = best[branch * stems + stem] + error * error
                if cost < least:
                    least, chosen = cost, np.int32(branch)
            low[symbol * stems + stem], arg[symbol * stems + stem] = least, chosen
    for stem in range(stems):
        for symbol in range(symbols):
            branch, group = arg[symbol * stems + stem], stem * symbols + symbol
            best[group], back[group] = low[symbol * stems + stem], branch
            error, before = scale * table[symbol, branch, stem] - target, branch * stems + stem
            for k in range(chunk):
                new[group, k] = old[before, k] + error * ahead[k]


def _decide(chunk: int) -> Callable[..., None]:
    def decide(  # type: ignore[no-untyped-def]
        target, scale, pull, own, following, kind, values, state_bits, start, best, back, pasts, errors, moved
    ):
        reach, number = pasts.shape[1], start // chunk
        if start > 0:
            groups = 1 << (state_bits - own[start])
            chosen = 0
            for group in range(groups):
                if best[group] < best[chosen]:
                    chosen = group
            past, before = pasts[number % 2], pasts[(number + 1) % 2]
            for group in range(groups):
                past[0, group] = group
            for t in range(start - 1, start - chunk - 1, -1):
                shift, shed = state_bits - following[t], own[t]
                for group in range(groups):
                    entered = past[0, group]
                    past[0, group] = ((np.int32(back[t, entered]) << shift) | entered) >> shed
            for back_by in range(1, min(reach, number)):
                for group in range(groups):
                    past[back_by, group] = before[back_by - 1, past[0, group]]
            if number >= reach:
                for group in range(groups):
                    if past[reach - 1, group] != past[reach - 1, chosen]:
                        best[group] = INFINITE
            group = chosen
            for t in range(start - 1, max(0, start - (reach + 1) * chunk) - 1, -1):
                state = (np.int64(back[t, group]) << (state_bits - following[t])) | group
                errors[t] = scale[t] * values[kind[t], state] - target[t]
                group = state >> own[t]
        for t in range(start, min(start + chunk, len(target))):
            pulled = target[t]
            for s in range(start):
                pulled -= pull[t, s] * errors[s]
            moved[t] = pulled

    return decide
