"""Decoded weights that stay between calls, within a budget of bytes.

A kept weight is the decoded one, bit for bit, in the layout that its product reads: outputs are those without a budget.
It is dropped when one of the tensors that it was decoded from is replaced, moved or written to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
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
        self._lock = Lock()

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


class KeptWeight:
    """The decoded weight of one layer, or nothing yet. Copies and pickles of a layer have no such thing."""

    def __init__(self, budget: DenseBudget) -> None:
        self.budget = budget
        self._weight: Tensor | None = None
        self._sources: tuple[Any, ...] = ()
        self._least = 0  # elements of the smallest input so far whose product was by a decoded weight
        self._references: list[StorageWeakRef] = []

    def get(self, x: Tensor, tensors: Sequence[Tensor], decode: Callable[[], Tensor]) -> Tensor:
        """The weight for products with ``x``, from ``tensors``: the kept one, or ``decode()``, kept if it fits."""
        sources = (x.dtype, x.device, *map(place_of, tensors))
        if self._weight is not None and sources == self._sources:
            self._least = min(self._least, x.numel())
            return self._weight
        self.drop()
        weight = decode()
        if not self.budget.take(weight.nbytes):
            return weight
        # Decoded weights lie in memory that the next layer decodes into.
        self._weight, self._sources, self._least = weight.clone(), sources, x.numel()
        # As long as a storage has a weak reference, its address stands for no other.
        self._references = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return self._weight

    def found(self, x: Tensor, parameters: Mapping[str, Tensor | None]) -> Tensor | None:
        """The kept weight, for a plain product with ``x``, if it is still that of a layer's ``parameters``.

        This is the short way of a call: not for fewer samples than `get` was asked for, which another kernel may
        serve, for gradients, autocast or tracing, and for products in another dtype than that of ``x`` or the bias.
        """
        if (
            self._weight is None
            or x.dtype is not self._weight.dtype
            or x.numel() < self._least
            or not is_plain(x, parameters["bias"])
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        sources, bias = [x.dtype, x.device], parameters["bias"]
        for name, parameter in parameters.items():
            if name != "bias" and parameter is not None:
                if parameter.requires_grad and torch.is_grad_enabled():
                    return None
                sources.append(place_of(parameter))
        same = tuple(sources) == self._sources and (bias is None or bias.dtype == x.dtype)
        return self._weight if same else None

    def drop(self) -> None:
        """Free the weight, if there is one."""
        weight, self._weight, self._sources, self._references = self._weight, None, (), []
        if weight is not None:
            self.budget.give_back(weight.nbytes)

    def __del__(self) -> None:
        self.drop()

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def __deepcopy__(self, memo: Any) -> None:
        return _nothing()


def _nothing() -> None:
    """What a copy has instead."""


def is_plain(x: Tensor, bias: Tensor | None) -> bool:
    """Whether this call is not traced and needs no gradients, so that it can bypass the torch operator."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter) or x.device.type == "meta":
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
