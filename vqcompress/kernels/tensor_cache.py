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
        storage, version = tensor.untyped_storage(), 0 if tensor.is_inference() else tensor._version
        place = (storage._cdata, tensor.storage_offset(), key)
        found = self._kept.get(place)
        if found is not None and found[1] == version:
            return found[2]
        _refuse_capture(tensor)
        value = make()
        self._sweep()
        self._kept[place] = (StorageWeakRef(storage), version, value)
        return value

    def _sweep(self) -> None:
        if len(self._kept) < self._sweep_at:
            return
        self._kept = {place: entry for place, entry in self._kept.items() if not entry[0].expired()}
        self._sweep_at = max(64, 2 * len(self._kept))


def _refuse_capture(tensor: Tensor) -> None:
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            "a packed layer is run for the first time while a CUDA graph is recorded; run the model once before, as "
            "torch asks for with every CUDA graph"
        )
