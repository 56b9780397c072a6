"""Compiled CPU loops that decode a column at a time, straight from its bytes into a row of ``Wᵀ``.

The loops are in `vqcompress.kernels.cpu.loops`, imported at the first call: numba takes half a second to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.kernels.cpu.threads import share
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.matrix_view import matrix_shape

PURPOSE = "decodes with compiled loops, then multiplies with torch"


@lru_cache(maxsize=1)
def _has_numba() -> bool:
    return find_spec("numba") is not None


def unsupported_reason(spec: FormatSpec, shape: tuple[int, ...], x: Tensor) -> str:
    """Why this kernel cannot serve the case, or an empty string: it takes every format on the CPU."""
    if x.device.type != "cpu":
        return f"the input is on {x.device.type}"
    return "" if _has_numba() else "numba is not installed"


def decode_transposed(
    spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, rows]``, computed in float32, in ``dtype``."""
    rows, columns = matrix_shape(shape)
    values = torch.empty(columns, rows)
    if isinstance(spec, TrellisSpec):
        _decode_trellis(values, spec, tensors)
    elif isinstance(spec, AdditiveSpec):
        _decode_additive(values, spec, tensors)
    elif isinstance(spec, ScalarSpec):
        _decode_scalar(values, spec, tensors)
    return values.to(dtype)


def _decode_trellis(values: Tensor, spec: TrellisSpec, tensors: Mapping[str, Tensor]) -> None:
    from vqcompress.kernels.cpu import loops as cpu_loops
    from vqcompress.kernels.cpu import trellis as cpu_trellis_loops

    columns, rows = values.shape
    codes, starts, rates, tables, state_bits, scale = trellis_arguments(cpu_loops, spec, tensors, rows, columns)
    scale = np.append(scale, np.zeros(-rows % 16, np.float32))
    for rate in np.unique(rates).tolist():
        if rate == 0:
            values[torch.from_numpy(rates == 0)] = torch.from_numpy(np.float32(0) * scale[:rows])
        else:
            loop = cpu_trellis_loops.trellis_decoder(state_bits, rate)
            _share_columns(loop, values, codes, starts, rates, tables[rate - 1], scale)


def _decode_additive(values: Tensor, spec: AdditiveSpec, tensors: Mapping[str, Tensor]) -> None:
    from vqcompress.kernels.cpu import additive as cpu_additive_loops
    from vqcompress.kernels.cpu import loops as cpu_loops

    columns, rows = values.shape
    codes, starts, rates, books, _, scale = additive_arguments(cpu_loops, spec, tensors, rows, columns)
    loop = cpu_additive_loops.additive_decoder(spec.dimension, spec.code_bits)
    _share_columns(loop, values, codes, starts, rates, books, scale)


def _decode_scalar(values: Tensor, spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> None:
    from vqcompress.kernels.cpu import scalar as cpu_scalar_loops

    codes, zeros, scales, bits, group_size = scalar_arguments(spec, tensors)
    loop = cpu_scalar_loops.scalar_decoder(bits)
    _share_columns(loop, values, codes, zeros, scales, group_size)


def _share_columns(loop: Any, values: Tensor, *arguments: Any) -> None:
    """Run ``loop`` over all columns of ``values [columns, rows]``, in threads when the weight is large.

    It finds arrays as their address and shape, numbers as they are.
    """
    plain: list[int] = []
    for argument in (values.numpy(), *arguments):
        plain += [argument.ctypes.data, *argument.shape] if isinstance(argument, np.ndarray) else [argument]
    share(len(values), values.numel(), loop, *plain)


def trellis_arguments(loops: Any, spec: TrellisSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> tuple:
    rates, starts = _columns(loops, spec, tensors, rows, columns)
    scale = _row_scale(tensors["scale"], rows)
    return _bytes(tensors["weight"]), starts, rates, trellis_tables(spec, tensors), spec.state_bits, scale


def additive_arguments(loops: Any, spec: AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int) -> tuple:
    rates, starts = _columns(loops, spec, tensors, rows, columns)
    scale = _row_scale(tensors["scale"], rows)
    return _bytes(tensors["weight"]), starts, rates, _floats(tensors["codebooks"]), spec.code_bits, scale


def scalar_arguments(spec: ScalarSpec, tensors: Mapping[str, Tensor]) -> tuple:
    scales = _floats(tensors["group_scale"])
    return _bytes(tensors["weight"]), _bytes(tensors["group_zero"]), scales, spec.bits, spec.group_size


_COLUMNS: TensorCache[tuple[np.ndarray, np.ndarray]] = TensorCache()


def _columns(
    loops: Any, spec: TrellisSpec | AdditiveSpec, tensors: Mapping[str, Tensor], rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rate and first byte of every column, int64."""

    def find() -> tuple[np.ndarray, np.ndarray]:
        rates = np.full(columns, spec.min_rate, dtype=np.int64)
        if "rates" in tensors:
            rates = loops.unpack_rates(_bytes(tensors["rates"]), columns, spec.min_rate, spec.rate_bits)
        return rates, loops.column_starts(rates, spec.bits_per_rate(rows) * np.arange(rates.max(initial=0) + 1))

    return _COLUMNS(tensors.get("rates", tensors["weight"]), (spec, rows, columns), find)


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
