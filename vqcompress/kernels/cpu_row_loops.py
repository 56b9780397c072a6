"""What comes before and after the loops over the codes of one row's product."""

from __future__ import annotations

from vqcompress.kernels.cpu_loops import _compiled
from vqcompress.kernels.cpu_vectors import float_at, put_float


@_compiled()
def take(x, order, values):
    """``values[i] = x[order[i]]`` for floats at the address ``x``."""
    for place in range(len(order)):
        values[place] = float_at(x + 4 * order[place])


@_compiled()
def finish(total, scale, scales, bias, y, rows):
    """``y = total * scale + bias`` for floats at the addresses ``y`` and, unless those are 0, ``scale`` (one or a row each) and ``bias``."""
    for row in range(rows):
        value = total[row]
        if scale != 0:
            value *= float_at(scale + 4 * (row if scales > 1 else 0))
        if bias != 0:
            value += float_at(bias + 4 * row)
        put_float(value, y + 4 * row)
