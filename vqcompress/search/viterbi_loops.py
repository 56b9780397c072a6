"""The compiled loops of `vqcompress.search.viterbi`. Importing this file imports numba.

See `vqcompress.search.trellis_steps` for the steps. Sizes are constants, so that LLVM unrolls and vectorizes the inner
loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from vqcompress.machine_code import compiled
from vqcompress.search.trellis_steps import steps

UNROLLED = 16  # branches

_fast = partial(compiled, nogil=True, fastmath=True, error_model="numpy")
_inlined = partial(_fast, inline="always")


@lru_cache(maxsize=64)
def compiled_forward(state_bits: int, rate: float) -> Callable[..., None]:
    """The forward pass for one trellis, compiled once per process and kept in numba's cache on disk.

    Signature ``(target [n], scale [n], kinds [n], tables…, best [>= groups], back [>= n, groups] uint8)``, with a table
    of `trellis_steps.arranged_tables` for each of `trellis_steps.steps`: ``best`` is the cost of each group, before the
    first weight on entry and after the last on return. ``back`` receives the chosen branches. Both have room for the
    largest number of groups.
    """
    sizes = [(*step.sizes, step.together) for step in steps(state_bits, rate)]
    return _fast()(_one_kind(*sizes) if len(sizes) == 1 else _three_kinds(*sizes))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def compiled_traceback() -> Callable[..., None]:
    """Signature ``(back [>= n, groups], last group, own [n], following [n], state_bits, states [n] int64)``; fills
    ``states``. ``own`` and ``following`` are the new bits of each weight and of the one after it."""
    return _fast()(_traceback)  # type: ignore[no-any-return]


def _traceback(back, group, own, following, state_bits, states):  # type: ignore[no-untyped-def]
    for t in range(len(states) - 1, -1, -1):
        states[t] = (np.int64(back[t, group]) << (state_bits - following[t])) | group
        group = states[t] >> own[t]


def _one_kind(sizes):  # type: ignore[no-untyped-def]
    branches, stems, symbols, together = sizes

    def forward(target, scale, kinds, table, best, back):  # type: ignore[no-untyped-def]
        low, arg = np.empty(symbols * stems, np.float32), np.empty(symbols * stems, np.int32)
        spread = np.empty(branches * stems * together, np.float32)
        for t in range(len(target)):
            _weight(target[t], scale[t], table, best, back[t], low, arg, spread, branches, stems, symbols, together)

    return forward


def _three_kinds(first, second, third):  # type: ignore[no-untyped-def]
    (b1, m1, s1, d1), (b2, m2, s2, d2), (b3, m3, s3, d3) = first, second, third
    room = max(m1 * s1, m2 * s2, m3 * s3)
    spread_room = max(b1 * m1 * d1, b2 * m2 * d2, b3 * m3 * d3)

    def forward(target, scale, kinds, one, two, three, best, back):  # type: ignore[no-untyped-def]
        low, arg = np.empty(room, np.float32), np.empty(room, np.int32)
        spread = np.empty(spread_room, np.float32)
        for t in range(len(target)):
            if kinds[t] == 0:
                _weight(target[t], scale[t], one, best, back[t], low, arg, spread, b1, m1, s1, d1)
            elif kinds[t] == 1:
                _weight(target[t], scale[t], two, best, back[t], low, arg, spread, b2, m2, s2, d2)
            else:
                _weight(target[t], scale[t], three, best, back[t], low, arg, spread, b3, m3, s3, d3)

    return forward


@_inlined()
def _weight(x, r, table, best, back, low, arg, spread, branches, stems, symbols, together):  # type: ignore[no-untyped-def]
    """One weight: ``best [groups]`` before it becomes that after it."""
    costs = _spread(best, spread, branches, stems, together) if together > 1 else best
    _step(x, r, table, costs, low, arg, branches, stems, symbols, together)
    _keep(best, back, low, arg, stems, symbols)


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
    `trellis_steps.Step.arranged` gives it.

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
