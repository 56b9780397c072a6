"""Compiled CPU loops that decode a column at a time, straight from its bytes into a row of ``Wᵀ``.

The loops are in `vqcompress.kernels.cpu_loops`, imported at the first call: numba takes half a second to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.trellis_table import max_rate, value_table
from vqcompress.matrix_view import matrix_shape


@lru_cache(maxsize=1)
def _has_numba() -> bool:
    return find_spec("numba") is not None


def supports(spec: FormatSpec, shape: tuple[int, ...], x: Tensor) -> bool:
    """Every format on the CPU, where numba is installed."""
    return x.device.type == "cpu" and _has_numba()


def decode_transposed(spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    """``Wᵀ [columns, rows]`` in float32, equal to the reference bit for bit."""
    from vqcompress.kernels import cpu_loops

    rows, columns = matrix_shape(shape)
    values = torch.empty(columns, rows)
    cpu_loops.use_threads(torch.get_num_threads())
    if isinstance(spec, TrellisSpec):
        _decode_trellis(cpu_loops, spec, tensors, values)
    elif isinstance(spec, AdditiveSpec):
        _decode_additive(cpu_loops, spec, tensors, values)
    else:
        _decode_scalar(cpu_loops, spec, tensors, values)
    return values


def _decode_trellis(loops, spec: TrellisSpec, tensors: Mapping[str, Tensor], values: Tensor) -> None:
    rates = _rates(loops, spec, tensors, values.shape[0])
    loops.decode_trellis(
        _bytes(tensors["weight"]),
        rates,
        _value_tables(spec.state_bits, spec.tail),
        spec.state_bits,
        _row_scale(tensors["scale"], values.shape[1]),
        values.numpy(),
    )


def _decode_additive(loops, spec: AdditiveSpec, tensors: Mapping[str, Tensor], values: Tensor) -> None:
    rates = _rates(loops, spec, tensors, values.shape[0])
    loops.decode_additive(
        _bytes(tensors["weight"]),
        rates,
        _floats(tensors["codebooks"]),
        spec.code_bits,
        _row_scale(tensors["scale"], values.shape[1]),
        values.numpy(),
    )


def _decode_scalar(loops, spec: ScalarSpec, tensors: Mapping[str, Tensor], values: Tensor) -> None:
    loops.decode_scalar(
        _bytes(tensors["weight"]),
        _bytes(tensors["group_zero"]),
        _floats(tensors["group_scale"]),
        spec.bits,
        spec.group_size,
        values.numpy(),
    )


def _rates(loops, spec: TrellisSpec | AdditiveSpec, tensors: Mapping[str, Tensor], columns: int) -> np.ndarray:
    if "rates" not in tensors:
        return np.full(columns, spec.min_rate, dtype=np.int64)
    return loops.unpack_rates(_bytes(tensors["rates"]), columns, spec.min_rate, spec.rate_bits)


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
