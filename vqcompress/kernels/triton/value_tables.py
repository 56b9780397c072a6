"""The trellis code's value tables as kernels take them: the one place where they come from, formula or learned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from vqcompress.formats import TrellisSpec
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels.tensor_cache import TensorCache

_LEARNED: TensorCache[Tensor] = TensorCache()


def value_tables(spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> Tensor:
    """Row ``i`` has the values of rate ``min_rate + i`` (zeros for rate 0), ``[rates, 2**state_bits]`` in float16.

    Kept for later calls; treat it as read-only.
    """
    device, rates = tensors["weight"].device, tuple(spec.rate_range)
    formula = _formula(spec.state_bits, spec.tail, rates, device)
    if not set(rates) & set(spec.codebook_rates):
        return formula
    books = tensors["codebooks"]
    return _LEARNED(books, spec, lambda: _with_learned(spec, formula, rates, books))


@lru_cache(maxsize=64)
def _formula(state_bits: int, tail: float, rates: tuple[int, ...], device: torch.device) -> Tensor:
    # Outside inference mode, or the first caller's mode would stick to a table that all share.
    with torch.inference_mode(False):
        zeros = torch.zeros(1 << state_bits, dtype=torch.float16)
        return torch.stack([value_table(state_bits, rate, tail) if rate else zeros for rate in rates]).to(device)


def _with_learned(spec: TrellisSpec, formula: Tensor, rates: tuple[int, ...], books: Tensor) -> Tensor:
    with torch.no_grad():
        tables = formula.to(books.dtype).clone()
        for index, rate in enumerate(rates):
            if rate in spec.codebook_rates:
                tables[index] = books[spec.codebook_rates.index(rate)]
        return tables
