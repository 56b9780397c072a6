"""The values that trellis states stand for, as the loops read them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import TrellisSpec
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.kernels.cpu.arguments import float_array, float_codebooks


def all_tables(spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """Row ``k`` is the table of weights with ``k`` new bits, learned or the formula's, float32 ``[max rate + 1,
    2**state_bits]``."""
    tables = _formula_table(spec.state_bits, spec.tail).numpy()
    if spec.codebook is None:
        return tables
    tables = tables.copy()
    tables[np.array(spec.codebook_rates)] = float_array(tensors["codebooks"])
    return tables


def rate_table(spec: TrellisSpec, halves: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The value table of one rate, or its two, learned or the formula's, float32 ``[1 or 2, 2**state_bits]``."""
    needed = range(halves // 2, (halves + 3) // 2)
    if not set(needed) & set(spec.codebook_rates):
        return _formula_table(spec.state_bits, spec.tail)[needed.start : needed.stop]
    if halves % 2 == 0:
        return float_codebooks(tensors)[spec.codebook_rates.index(needed.start)]
    return torch.from_numpy(all_tables(spec, tensors)[needed.start : needed.stop])


@lru_cache(maxsize=64)
def formula_pair(state_bits: int, tail: float, less: int) -> np.ndarray:
    """The two tables of a half-integer rate as they are, float16 ``[2 * 2**state_bits + 1]``, the last never used.

    In float32 they would fill the first cache.
    """
    tables = [value_table(state_bits, bits, tail) for bits in (less, less + 1)]
    return torch.cat([*tables, torch.zeros(1, dtype=torch.float16)]).numpy()


@lru_cache(maxsize=32)
def _formula_table(state_bits: int, tail: float) -> Tensor:
    return torch.stack([value_table(state_bits, bits, tail) for bits in range(max_rate(state_bits) + 1)]).float()
