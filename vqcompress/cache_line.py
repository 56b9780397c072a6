"""Weights that begin on a cache line, wherever a file's mapping has put them."""

from __future__ import annotations

from torch import Tensor

CACHE_LINE = 64  # bytes; what torch allocates begins on one
COPIED_BYTES = 1 << 20  # the largest tensor that is copied for it; what is larger stays in the mapped file


def on_cache_line(value: Tensor) -> Tensor:
    """A copy of ``value`` where it is a small CPU tensor that begins within a cache line, as most in a mapped file do.

    Anything else is returned as it is. On some processors the rounding of a product depends on where the matrix begins,
    so a model read back would draw other images than the one that was written.
    """
    if value.device.type != "cpu" or value.nbytes > COPIED_BYTES or value.data_ptr() % CACHE_LINE == 0:
        return value
    return value.clone()
