"""The order of a weight's columns in its stream, and where each rate ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, TrellisSpec
from vqcompress.kernels.tensor_cache import TensorCache


@dataclass(frozen=True)
class ColumnOrder:
    """The stored order of columns. Kernels compute all offsets from it.

    ``columns [n]`` (int32) are the columns in stored order, by rate, then by index. ``ends[i]`` (``[rates]``, int32) is
    the number of columns with a rate of at most ``min_rate + i``.
    """

    columns: Tensor
    ends: Tensor


_ORDERS: TensorCache[ColumnOrder] = TensorCache()


def column_order(spec: TrellisSpec | AdditiveSpec, columns: int, tensors: Mapping[str, Tensor]) -> ColumnOrder:
    """The order of a weight's columns, on the device of its tensors. Computed once, without device synchronization."""
    source = tensors.get("rates", tensors["weight"])
    return _ORDERS(source, (spec, columns), lambda: _order(spec, columns, tensors, source.device))


def _order(
    spec: TrellisSpec | AdditiveSpec, columns: int, tensors: Mapping[str, Tensor], device: torch.device
) -> ColumnOrder:
    if "rates" not in tensors:
        return ColumnOrder(
            torch.arange(columns, dtype=torch.int32, device=device), torch.full((1,), columns, device=device).int()
        )
    rates = spec.rates(columns, tensors)
    order = torch.sort(rates, stable=True).indices.int()
    known = torch.tensor(list(spec.rate_range), device=device)
    return ColumnOrder(order, (rates[:, None] <= known).sum(0).int())
