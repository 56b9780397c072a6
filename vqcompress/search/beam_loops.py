"""The compiled loops of `vqcompress.search.beam`. Importing this file imports numba.

Costs omit the constant ``|x|²``: extending a partial sum with residual ``r`` by codeword ``c`` adds
``|c|² - 2 r·c``. The last dimension of codebooks is the codeword, so that loops over codewords are vectorized.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from vqcompress.machine_code import compiled

CHUNK = 16  # codewords per comparison of their least cost with the worst kept cost: one vector register of float32
FASTMATH = {"contract", "reassoc", "nsz", "nnan"}
_compiled = partial(compiled, nogil=True, fastmath=FASTMATH, error_model="numpy")

# A callee from numba's cache is linked, not inlined, and may round differently from a newly compiled one. The same
# command would then not always give the same bytes.
_inlined = partial(_compiled, inline="always")


@_inlined()
def _extension_costs(costs, residual, codebook, norms, base):  # type: ignore[no-untyped-def]
    """``costs[k] = base + |c_k|² - 2 residual·c_k``, four dimensions per pass, as many as fit in registers."""
    for k in range(len(costs)):
        costs[k] = base + norms[k]
    for x in range(0, len(residual), 4):
        a, b, c, d = residual[x], residual[x + 1], residual[x + 2], residual[x + 3]
        a, b, c, d = -a - a, -b - b, -c - c, -d - d  # a literal 2 would make this float64
        p, q, r, s = codebook[x], codebook[x + 1], codebook[x + 2], codebook[x + 3]
        for k in range(len(costs)):
            costs[k] += a * p[k] + b * q[k] + c * r[k] + d * s[k]


@_inlined()
def _worst(kept_costs, width):  # type: ignore[no-untyped-def]
    place = 0
    for q in range(1, width):
        if kept_costs[q] > kept_costs[place]:
            place = q
    return place


@_inlined()
def _keep_best(costs, parent, kept, width, place, kept_costs, parents, words):  # type: ignore[no-untyped-def]
    """Merge the extensions of one partial sum into the ``width`` best so far. Returns the number kept and the index of
    the worst."""
    for start in range(0, len(costs), CHUNK):
        least = costs[start]
        for k in range(start, start + CHUNK):
            least = min(least, costs[k])
        if kept == width and least >= kept_costs[place]:
            continue
        for k in range(start, start + CHUNK):
            if kept < width:
                place = kept
                kept += 1
            elif costs[k] >= kept_costs[place]:
                continue
            kept_costs[place], parents[place], words[place] = costs[k], parent, k
            if kept == width:
                place = _worst(kept_costs, width)
    return kept, place


@_compiled()
def search(vectors, codebooks, norms, beam, codes):  # type: ignore[no-untyped-def]
    """Fill ``codes [n, M]`` (int32) for ``vectors [n, d]``, given ``codebooks [M, d, K]`` and ``norms [M, K]``. K is a
    multiple of `CHUNK`."""
    count, dimension, size = codebooks.shape
    costs, parents, words = np.empty(size, np.float32), np.empty(beam, np.int32), np.empty(beam, np.int32)
    now, then = np.empty(beam, np.float32), np.empty(beam, np.float32)
    residuals, next_residuals = np.empty((beam, dimension), np.float32), np.empty((beam, dimension), np.float32)
    paths, next_paths = np.empty((beam, count), np.int32), np.empty((beam, count), np.int32)
    for i in range(len(vectors)):
        live = 1
        now[0] = 0
        residuals[0] = vectors[i]
        for m in range(count):
            kept, place, width = 0, 0, beam if m < count - 1 else 1
            for parent in range(live):
                _extension_costs(costs, residuals[parent], codebooks[m], norms[m], now[parent])
                kept, place = _keep_best(costs, parent, kept, width, place, then, parents, words)  # type: ignore[misc]  # compiled by numba
            for q in range(kept):
                for x in range(dimension):
                    next_residuals[q, x] = residuals[parents[q], x] - codebooks[m, x, words[q]]
                for y in range(m):
                    next_paths[q, y] = paths[parents[q], y]
                next_paths[q, m] = words[q]
            now, then = then, now
            residuals, next_residuals = next_residuals, residuals
            paths, next_paths = next_paths, paths
            live = kept
        codes[i] = paths[0]
