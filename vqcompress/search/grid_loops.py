"""The compiled loop of `vqcompress.quantizers.scalar_grid`'s clip search. Importing this file imports numba."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from vqcompress.machine_code import compiled

LANES = 16  # outputs that are searched side by side
ROUNDS = 16  # weights of a group after which a candidate that has lost with all of them is given up


@lru_cache(maxsize=1)
def compiled_least() -> Any:
    """The candidate of least squared error for each group of each output.

    Signature ``(grouped [groups, size, outputs], mass [groups, size], scales [candidates, groups, outputs], zeros
    (the same), top, chosen [groups, outputs] int32, least [groups, outputs])``, all but ``chosen`` float32: sets
    ``chosen`` and its error ``least``, each weight's by its ``mass``, for codes from 0 to ``top``. Of equals the first
    is chosen. Weights are multiplied with reciprocals of scales, so one that is next to halfway between two codes may
    count with the other one.
    """
    return compiled(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")(_least)


def _least(grouped, mass, scales, zeros, top, chosen, least):  # type: ignore[no-untyped-def]
    candidates, groups, outputs = scales.shape
    size = grouped.shape[1]
    weights = np.zeros((size, LANES), np.float32)
    step, inverse = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    zero, error, best = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    index = np.zeros(LANES, np.int32)
    top = np.float32(top)
    for group in range(groups):
        for first in range(0, outputs, LANES):
            count = min(LANES, outputs - first)
            weights[:, :] = 0
            for i in range(size):
                for lane in range(count):
                    weights[i, lane] = grouped[group, i, first + lane]
            best[:] = np.inf
            for candidate in range(candidates):
                error[:] = 0
                for lane in range(count):
                    step[lane] = scales[candidate, group, first + lane]
                    zero[lane] = zeros[candidate, group, first + lane]
                    inverse[lane] = np.float32(1) / step[lane] if step[lane] > 0 else np.float32(0)
                at, open_lanes = 0, 1
                while at < size and open_lanes > 0:
                    end = min(at + ROUNDS, size)
                    for i in range(at, end):
                        own = mass[group, i]
                        for lane in range(LANES):
                            code = np.rint(weights[i, lane] * inverse[lane]) + zero[lane]
                            code = min(max(code, np.float32(0)), top)
                            off = (code - zero[lane]) * step[lane] - weights[i, lane]
                            error[lane] += off * off * own
                    open_lanes = 0
                    for lane in range(LANES):
                        open_lanes += int(error[lane] < best[lane])
                    at = end
                if open_lanes > 0:
                    for lane in range(LANES):
                        if error[lane] < best[lane]:
                            best[lane], index[lane] = error[lane], candidate
            for lane in range(count):
                chosen[group, first + lane], least[group, first + lane] = index[lane], best[lane]
