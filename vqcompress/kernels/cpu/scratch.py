"""Memory for decoded weights that every thread keeps: fresh pages cost more than the decoding.

A large tensor that torch allocates on a CPU comes from the system and goes back to it, so writing it faults in every
page anew: for 200 M weights that took twice as long as decoding them. Layers therefore decode into the same memory, one
after the other. A weight there is valid until the thread decodes the next one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

KEPT_BYTES = 1 << 28
"""A buffer larger than this goes back to the system after its use."""


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_use: dict[Hashable, Tensor] = {}
        self.views: dict[Hashable, dict[tuple[Any, ...], Tensor]] = {}


_BUFFERS = _Buffers()


def scratch(use: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of ``shape`` with any contents, in the memory of the last one with the same ``use``."""
    if (views := _BUFFERS.views.get(use)) is not None and (found := views.get((shape, dtype))) is not None:
        return found
    size = math.prod(shape) * dtype.itemsize
    if size > KEPT_BYTES:
        return torch.empty(shape, dtype=dtype)
    buffer = _BUFFERS.by_use.get(use)
    with torch.inference_mode(False):  # or the first caller's mode would stick to memory that all share
        if buffer is None or buffer.numel() < size:
            buffer = _BUFFERS.by_use[use] = torch.empty(size, dtype=torch.uint8)
            _BUFFERS.views[use] = {}
        view = _BUFFERS.views[use][shape, dtype] = buffer[:size].view(dtype).view(shape)
    return view


def release_scratch() -> None:
    """Give this thread's memory back. Weights that lie in it are no longer valid."""
    _BUFFERS.by_use.clear()
    _BUFFERS.views.clear()
