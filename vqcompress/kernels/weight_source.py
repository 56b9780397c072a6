"""A layer's dense weight in its second call: kept within a budget of bytes, or decoded by what the first call settled.

Either is the decoded weight, bit for bit, in the layout that its product reads: outputs are those without a budget. It
is settled anew when one of the tensors that it stands for is replaced, moved or written to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock, RLock
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from vqcompress.kernels.tensor_cache import place_of

EVERYTHING = 1 << 62
"""A limit in bytes that no model reaches."""


class DenseBudget:
    """At most ``limit`` bytes of decoded weights, shared by the layers of one model or pipeline. Threads may share it.

    ``used`` is what is kept now, ``layers`` how many layers may keep theirs, ``planned`` the bytes that these will
    take.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.layers, self.planned = limit, 0, 0, 0
        self._lock = RLock()  # the garbage collector may drop a source while this thread has it

    def take(self, size: int) -> bool:
        """Count ``size`` bytes more; False, and nothing is counted, where they would exceed the limit."""
        with self._lock:
            fits = self.used + size <= self.limit
            self.used += size * fits
        return fits

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes less."""
        with self._lock:
            self.used -= size

    def __str__(self) -> str:
        limit = "" if self.limit >= EVERYTHING else f" of {self.limit / 1e9:.2f} GB"
        return f"{self.layers} decoded weights are kept between steps, {self.planned / 1e9:.2f} GB{limit}"


@dataclass(frozen=True)
class _Settled:
    """``get()`` gives the weight in ``dtype`` as long as the tensors lie and read as ``sources`` say. ``kept`` are the
    bytes of a decoded weight; ``references`` are weak."""

    sources: tuple[Any, ...]
    dtype: torch.dtype
    get: Callable[[], Tensor]
    kept: int
    references: tuple[StorageWeakRef, ...]


class WeightSource:
    """Where the calls of one layer get its dense weight, settled at the first one.

    That is a decoded weight that is kept, within ``budget``, or else a function that launches the decoding and does no
    more; ``ahead`` is given this function, and gives the weight that was decoded before it was asked for, or calls it.
    Threads may share it. Copies and pickles of a layer have none.
    """

    def __init__(
        self, budget: DenseBudget | None = None, ahead: Callable[[Callable[[], Tensor]], Tensor] | None = None
    ) -> None:
        self.budget, self.ahead = budget, ahead
        self._settled: _Settled | None = None
        self._settling = Lock()
        self._least = 0  # elements of the smallest input so far whose product was by a decoded weight

    @property
    def keeps(self) -> bool:
        """Whether a decoded weight is kept now."""
        return self._settled is not None and self._settled.kept > 0

    def get(
        self,
        x: Tensor,
        tensors: Sequence[Tensor],
        decode: Callable[[], Tensor],
        prepare: Callable[[], Callable[[], Tensor] | None],
        matrix: bool = False,
    ) -> Tensor:
        """The weight for products with ``x``, from ``tensors``: the settled one, or ``decode()``, which is kept if it
        fits. If not, later calls run what ``prepare()`` returns, unless that is None. ``matrix`` says that these give
        the matrix of a filter (`vqcompress.kernels.unfolded`)."""
        sources = (matrix, x.dtype, x.device, *map(place_of, tensors))
        settled = self._settled
        if settled is not None and sources == settled.sources:
            self._least = min(self._least, x.numel())
            return settled.get()
        self.drop()
        weight = decode()
        if self.budget is not None and self.budget.take(weight.nbytes):
            # Decoded weights lie in memory that the next layer decodes into.
            kept, weight = weight.nbytes, weight.clone()
            get: Callable[[], Tensor] | None = partial(_itself, weight)
        else:
            kept, get = 0, prepare()
            if get is not None and self.ahead is not None:
                get = partial(self.ahead, get)
        if get is None:
            return weight
        # As long as a storage has a weak reference, its address stands for no other.
        references = tuple(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors)
        self._least = x.numel()
        self._settle(_Settled(sources, weight.dtype, get, kept, references))
        return weight

    def found(
        self, x: Tensor, parameters: Mapping[str, Tensor | None], plain: bool = False, matrix: bool = False
    ) -> Tensor | None:
        """The weight for a plain product with ``x``, if what is settled is still that of a layer's ``parameters``.

        This is the short way of a call: not for fewer samples than `get` was asked for, which another kernel may
        serve, for gradients, autocast or tracing, and for products in another dtype than that of ``x`` or the bias.
        ``plain`` says that there is none of that (`vqcompress.layers.repeated_input.applies`).
        """
        bias = parameters["bias"]
        if not plain and not is_plain(x, bias):  # before anything that a trace would guard
            return None
        settled = self._settled
        if (
            settled is None
            or x.dtype is not settled.dtype
            or x.numel() < self._least
            or (not plain and torch.is_autocast_enabled(x.device.type))
        ):
            return None
        sources, learning = [matrix, x.dtype, x.device], not plain and torch.is_grad_enabled()
        for name, parameter in parameters.items():
            if name != "bias" and parameter is not None:
                if learning and parameter.requires_grad:
                    return None
                sources.append(place_of(parameter))
        same = tuple(sources) == settled.sources and (bias is None or bias.dtype == x.dtype)
        return settled.get() if same else None

    def drop(self) -> None:
        """Free what is kept, and settle anew at the next call."""
        self._settle(None)

    def _settle(self, settled: _Settled | None) -> None:
        """Replace what is settled, by another thread perhaps, and give back the bytes that it kept."""
        with self._settling:
            before, self._settled = self._settled, settled
        if before is not None and before.kept and self.budget is not None:
            self.budget.give_back(before.kept)

    def __del__(self) -> None:
        self.drop()

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def __deepcopy__(self, memo: Any) -> None:
        return _nothing()


def _itself(weight: Tensor) -> Tensor:
    return weight


def _nothing() -> None:
    """What a copy has instead."""


def is_plain(x: Tensor, bias: Tensor | None) -> bool:
    """Whether this call is not traced and needs no gradients, so that it can bypass the torch operator."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter) or x.device.type == "meta":
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
