"""In which order the columns of a weight lie in its stream, and where one rate ends and the next begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, TrellisSpec
from vqcompress.formats.trellis_table import max_rate
from vqcompress.kernels.tensor_cache import TensorCache


@dataclass(frozen=True)
class ColumnOrder:
    """``columns [n]`` (int32): the columns in stored order, by rate, then by index. ``ends [rates]`` (int32): how many columns have
    at most the rate ``min_rate + i``. Four bytes a column, from which a kernel finds everything else by arithmetic.
    """

    columns: Tensor
    ends: Tensor


_ORDERS: TensorCache[ColumnOrder] = TensorCache()


def column_order(spec: TrellisSpec | AdditiveSpec, columns: int, tensors: Mapping[str, Tensor]) -> ColumnOrder:
    """The order of a weight of that many columns, on the device of its tensors; made once, without waiting for the device."""
    source = tensors.get("rates", tensors["weight"])
    return _ORDERS(source, (spec, columns), lambda: _order(spec, columns, tensors, source.device))


def rate_range(spec: TrellisSpec | AdditiveSpec) -> range:
    """The rates that columns can have."""
    highest = max_rate(spec.state_bits) if isinstance(spec, TrellisSpec) else spec.codebooks
    return range(spec.min_rate, min(spec.min_rate + (1 << spec.rate_bits) - 1, max(highest, spec.min_rate)) + 1)


def bits_per_rate(spec: TrellisSpec | AdditiveSpec, rows: int) -> int:
    """Bits that a column of ``rows`` weights takes for each unit of its rate."""
    return rows if isinstance(spec, TrellisSpec) else spec.vectors(rows) * spec.code_bits


def _order(
    spec: TrellisSpec | AdditiveSpec, columns: int, tensors: Mapping[str, Tensor], device: torch.device
) -> ColumnOrder:
    if "rates" not in tensors:
        return ColumnOrder(
            torch.arange(columns, dtype=torch.int32, device=device), torch.full((1,), columns, device=device).int()
        )
    rates = spec.rates(columns, tensors)
    order = torch.sort(rates, stable=True).indices.int()
    known = torch.tensor(list(rate_range(spec)), device=device)
    return ColumnOrder(order, (rates[:, None] <= known).sum(0).int())
