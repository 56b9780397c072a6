"""Compiled CPU loops that decode a column at a time, straight from its bytes into a row of ``Wᵀ``.

The loops are in `vqcompress.kernels.cpu_loops`, imported at the first call: numba takes half a second to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.matrix_view import matrix_shape

PURPOSE = "decodes with compiled loops, then multiplies with torch"

# Starting a thread costs about as much as decoding this many weights saves.
WEIGHTS_PER_THREAD = 1 << 18


@lru_cache(maxsize=1)
def _has_numba() -> bool:
    return find_spec("numba") is not None


def refusal(spec: FormatSpec, shape: tuple[int, ...], x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string: it takes every format on the CPU."""
    if x.device.type != "cpu":
        return f"the input is on {x.device.type}"
    return "" if _has_numba() else "numba is not installed"


def decode_transposed(
    spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, rows]``, computed in float32, in ``dtype``."""
    from vqcompress.kernels import cpu_loops

    rows, columns = matrix_shape(shape)
    values = torch.empty(columns, rows)
    if isinstance(spec, TrellisSpec):
        _share(cpu_loops.decode_trellis, values, *trellis_arguments(cpu_loops, spec, tensors, rows, columns))
    elif isinstance(spec, AdditiveSpec):
        _share(cpu_loops.decode_additive, values, *additive_arguments(cpu_loops, spec, tensors, rows, columns))
    else:
        _share(cpu_loops.decode_scalar, values, *scalar_arguments(spec, tensors))
    return values.to(dtype)


def _share(loop: Callable, values: Tensor, *arguments: Any) -> None:
    """Run ``loop(first, last, values, …)`` over all columns, in threads when the weight is large."""
    columns = len(values)
    threads = min(torch.get_num_threads(), values.numel() // WEIGHTS_PER_THREAD, columns)
    if threads <= 1:
        loop(0, columns, values.numpy(), *arguments)
        return
    bounds = [columns * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(loop, *pair, values.numpy(), *arguments) for pair in pairwise(bounds)]
    for run in runs:
        run.result()


def trellis_arguments(loops: Any, spec: TrellisSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> tuple:
    rates = _rates(loops, spec, tensors, columns)
    starts = loops.column_starts(rates, rows * np.arange(rates.max() + 1))
    scale = _row_scale(tensors["scale"], rows)
    return _bytes(tensors["weight"]), starts, rates, trellis_tables(spec, tensors), spec.state_bits, scale


def additive_arguments(loops: Any, spec: AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> tuple:
    rates = _rates(loops, spec, tensors, columns)
    starts = loops.column_starts(rates, spec.vectors(rows) * spec.code_bits * np.arange(rates.max() + 1))
    scale = _row_scale(tensors["scale"], rows)
    return _bytes(tensors["weight"]), starts, rates, _floats(tensors["codebooks"]), spec.code_bits, scale


def scalar_arguments(spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> tuple:
    scales = _floats(tensors["group_scale"])
    return _bytes(tensors["weight"]), _bytes(tensors["group_zero"]), scales, spec.bits, spec.group_size


def _rates(loops: Any, spec: TrellisSpec | AdditiveSpec, tensors: Mapping[str, Tensor], columns: int) -> np.ndarray:
    if "rates" not in tensors:
        return np.full(columns, spec.min_rate, dtype=np.int64)
    return loops.unpack_rates(_bytes(tensors["rates"]), columns, spec.min_rate, spec.rate_bits)


def trellis_tables(spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """Row ``k - 1`` is the value table of rate ``k``, learned or the formula's, float32 ``[max rate, 2**state_bits]``."""
    tables = _value_tables(spec.state_bits, spec.tail)
    if spec.codebook is None:
        return tables
    tables = tables.copy()
    tables[np.array(spec.codebook_rates) - 1] = _floats(tensors["codebooks"])
    return tables


@lru_cache(maxsize=32)
def _value_tables(state_bits: int, tail: float) -> np.ndarray:
    """Row ``k - 1`` is the value table of rate ``k``, float32 ``[max rate, 2**state_bits]``."""
    tables = [value_table(state_bits, rate, tail).float() for rate in range(1, max_rate(state_bits) + 1)]
    return torch.stack(tables).numpy()


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def _floats(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _row_scale(scale: Tensor, rows: int) -> np.ndarray:
    return scale.detach().float().expand(rows).contiguous().numpy()
