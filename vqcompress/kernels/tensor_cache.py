"""A cache of values computed from a stored tensor, kept as long as that tensor exists.

Column order and value tables are computed from a layer's tensors. This takes many small operations, on an accelerator
one launch each. As buffers they would appear in state dicts and be moved by offloading hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from vqcompress.errors import UnsupportedError

Value = TypeVar("Value")


class TensorCache(Generic[Value]):
    """Values by (tensor, key), computed at the first call. They are dropped if the tensor is freed or written to.

    The weak reference prevents reuse of the storage's address, so an address identifies a storage. Writes are detected
    by the tensor's version counter; writes through ``.data`` are not detected.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[StorageWeakRef, int, Value]] = {}
        self._sweep_at = 64

    def __call__(self, tensor: Tensor, key: Hashable, make: Callable[[], Value]) -> Value:
        """The cached value for ``tensor`` and ``key``, or else ``make()``.

        Raises `UnsupportedError` if it would have to be computed while a CUDA graph is recorded: its memory would then
        belong to the graph.
        """
        *where, version = place_of(tensor)
        place = (*where, key)
        found = self._kept.get(place)
        if found is not None and found[1] == version:
            return found[2]
        refuse_capture(tensor.device)
        value = make()
        if tensor.is_cuda:  # later calls may be on other streams, which do not wait for this one
            torch.cuda.current_stream(tensor.device).synchronize()
        self._sweep()
        self._kept[place] = (StorageWeakRef(tensor.untyped_storage()), version, value)
        return value

    def _sweep(self) -> None:
        if len(self._kept) < self._sweep_at:
            return
        self._kept = {place: entry for place, entry in self._kept.items() if not entry[0].expired()}
        self._sweep_at = max(64, 2 * len(self._kept))


def place_of(tensor: Tensor) -> tuple[int, int, int]:
    """The storage, the offset in it, and how often the tensor was written to. Valid as long as the storage exists."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), version


def refuse_capture(device: torch.device) -> None:
    """Raise `UnsupportedError` while a CUDA graph is recorded: memory allocated now would belong to the graph."""
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            "a packed layer is run for the first time while a CUDA graph is recorded; run the model once before, as "
            "torch asks for with every CUDA graph"
        )
