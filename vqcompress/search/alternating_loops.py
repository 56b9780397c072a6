"""The compiled loops of searches at half-integer rates. Importing this file imports numba.

See `vqcompress.search.alternating_steps` for the steps. Here as in `vqcompress.search.viterbi` sizes are constants, so
that LLVM unrolls and vectorizes the inner loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from vqcompress.machine_code import compiled
from vqcompress.search.alternating_steps import steps

UNROLLED = 16  # branches

_fast = partial(compiled, nogil=True, fastmath=True, error_model="numpy")
_inlined = partial(_fast, inline="always")


@lru_cache(maxsize=64)
def compiled_forward(state_bits: int, rate: float) -> Callable[..., None]:
    """The forward pass at a half-integer rate.

    Signature ``(target [n], scale [n], kinds [n], first, second, third, best, back [>= n, groups] uint8)`` with the
    tables of `alternating_steps.arranged_tables`; otherwise as `vqcompress.search.viterbi.compiled_forward`.
    ``best`` and ``back`` have room for the largest number of groups.
    """
    return _fast()(_forward(*((*step.sizes, step.together) for step in steps(state_bits, rate))))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def compiled_traceback() -> Callable[..., None]:
    """Signature ``(back [>= n, groups], last group, own [n], following [n], state_bits, states [n] int64)``; fills
    ``states``. ``own`` and ``following`` are the new bits of each weight and of the one after it."""
    return _fast()(_traceback)  # type: ignore[no-any-return]


def _traceback(back, group, own, following, state_bits, states):  # type: ignore[no-untyped-def]
    for t in range(len(states) - 1, -1, -1):
        states[t] = (np.int64(back[t, group]) << (state_bits - following[t])) | group
        group = states[t] >> own[t]


def _forward(first, second, third):  # type: ignore[no-untyped-def]
    (b1, m1, s1, d1), (b2, m2, s2, d2), (b3, m3, s3, d3) = first, second, third
    room = max(m1 * s1, m2 * s2, m3 * s3)
    spread_room = max(b1 * m1 * d1, b2 * m2 * d2, b3 * m3 * d3)

    def forward(target, scale, kinds, one, two, three, best, back):  # type: ignore[no-untyped-def]
        low, arg = np.empty(room, np.float32), np.empty(room, np.int32)
        spread = np.empty(spread_room, np.float32)
        for t in range(len(target)):
            if kinds[t] == 0:
                costs = _spread(best, spread, b1, m1, d1) if d1 > 1 else best
                _step(target[t], scale[t], one, costs, low, arg, b1, m1, s1, d1)
                _keep(best, back[t], low, arg, m1, s1)
            elif kinds[t] == 1:
                costs = _spread(best, spread, b2, m2, d2) if d2 > 1 else best
                _step(target[t], scale[t], two, costs, low, arg, b2, m2, s2, d2)
                _keep(best, back[t], low, arg, m2, s2)
            else:
                costs = _spread(best, spread, b3, m3, d3) if d3 > 1 else best
                _step(target[t], scale[t], three, costs, low, arg, b3, m3, s3, d3)
                _keep(best, back[t], low, arg, m3, s3)

    return forward


@_inlined()
def _spread(best, spread, branches, stems, together):  # type: ignore[no-untyped-def]
    """Costs as `_step` reads them beside each other, every branch's ``stems`` once for each of ``together`` symbols."""
    for branch in range(branches):
        for copy in range(together):
            for stem in range(stems):
                spread[(branch * together + copy) * stems + stem] = best[branch * stems + stem]
    return spread


@_inlined()
def _step(x, r, table, costs, low, arg, branches, stems, symbols, together):  # type: ignore[no-untyped-def]
    """The cheapest branch into every group, into ``low, arg [symbols * stems]``; ``table`` as
    `alternating_steps.Step.arranged` gives it.

    Vectorized over the stems of ``together`` symbols. Branches go in blocks short enough to be unrolled.
    """
    width = stems * together
    for block in range(symbols // together):
        at = block * branches * width
        for lane in range(width):
            error = x - r * table[at + lane]
            least, chosen = costs[lane] + error * error, np.int32(0)
            for branch in range(1, min(branches, UNROLLED)):
                error = x - r * table[at + branch * width + lane]
                cost = costs[branch * width + lane] + error * error
                if cost < least:
                    least, chosen = cost, np.int32(branch)
            low[block * width + lane], arg[block * width + lane] = least, chosen
        for later in range(UNROLLED, branches, UNROLLED):
            for lane in range(width):
                least, chosen = low[block * width + lane], arg[block * width + lane]
                for branch in range(UNROLLED):
                    error = x - r * table[at + (later + branch) * width + lane]
                    cost = costs[(later + branch) * width + lane] + error * error
                    if cost < least:
                        least, chosen = cost, np.int32(later + branch)
                low[block * width + lane], arg[block * width + lane] = least, chosen


@_inlined()
def _keep(best, back, low, arg, stems, symbols):  # type: ignore[no-untyped-def]
    """Costs and branches of all groups, in the order of groups."""
    for stem in range(stems):
        for symbol in range(symbols):
            best[stem * symbols + symbol] = low[symbol * stems + stem]
    for stem in range(stems):
        for symbol in range(symbols):
            back[stem * symbols + symbol] = arg[symbol * stems + stem]
