"""What the loops are called with: stored tensors as arrays and addresses, columns by rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, TrellisSpec
from vqcompress.kernels.cpu.loops import BLOCK_NUMBERS, column_starts, take, unpack_rates
from vqcompress.kernels.cpu.operations import as_floats
from vqcompress.kernels.cpu.threads import parallel_for
from vqcompress.kernels.tensor_cache import TensorCache

RatedSpec = TrellisSpec | AdditiveSpec
"""Formats whose columns have rates."""


def run_over_columns(loop: Any, values: Tensor, *arguments: Any) -> None:
    """Run ``loop`` over all columns of ``values [columns, outputs]``, in threads when the weight is large.

    It finds arrays as their address and shape, numbers as they are.
    """
    plain: list[int] = []
    for argument in (values.numpy(), *arguments):
        plain += [argument.ctypes.data, *argument.shape] if isinstance(argument, np.ndarray) else [argument]
    parallel_for(loop, len(values), values.numel(), *plain)


def byte_array(tensor: Tensor) -> np.ndarray:
    """Packed bytes, uint8 ``[n]``."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def float_array(tensor: Tensor) -> np.ndarray:
    """Contiguous float32."""
    return tensor.detach().float().contiguous().numpy()


def output_scale(scale: Tensor, outputs: int) -> np.ndarray:
    """A scale for each output, float32 ``[outputs]``."""
    return scale.detach().float().expand(outputs).contiguous().numpy()


_COLUMNS: TensorCache[tuple[np.ndarray, np.ndarray]] = TensorCache()


def rates_and_starts(
    spec: RatedSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rate and first byte of every column, int64."""

    def find() -> tuple[np.ndarray, np.ndarray]:
        rates = np.full(columns, spec.min_rate, dtype=np.int64)
        if "rates" in tensors:
            rates = unpack_rates(byte_array(tensors["rates"]), columns, spec.min_rate, spec.rate_bits)
        lengths = [spec.column_bits(outputs, rate) for rate in range(rates.max(initial=0) + 1)]
        return rates, column_starts(rates, np.array(lengths))

    return _COLUMNS(tensors.get("rates", tensors["weight"]), (spec, outputs, columns), find)


@dataclass(frozen=True)
class RateBlock:
    """Columns of one rate, from ``first`` to ``last`` in stored order; their bytes begin at byte ``start``."""

    rate: int
    first: int
    last: int
    start: int


@dataclass(frozen=True)
class StoredOrder:
    """``order [columns]`` (int64): the columns in stored order; their blocks, without columns of no bits."""

    order: Tensor
    blocks: tuple[RateBlock, ...]

    def inputs(self, x: int) -> Tensor:
        """The inputs at the address ``x`` in stored order."""
        values = torch.empty(len(self.order), dtype=torch.float32)
        take.ctypes(x, self.order.data_ptr(), values.data_ptr(), len(values))
        return values


_ORDERS: TensorCache[StoredOrder] = TensorCache()


def stored_order(spec: RatedSpec, tensors: Mapping[str, Tensor], outputs: int, columns: int) -> StoredOrder:
    """Made once for a weight."""
    codes = tensors["weight"]

    def make() -> StoredOrder:
        rates = spec.rates(columns, tensors).cpu().numpy()
        order = torch.from_numpy(np.argsort(rates, kind="stable").astype(np.int64))
        known, counts = np.unique(rates, return_counts=True)
        blocks, first, start = [], 0, 0
        for rate, count in zip(known.tolist(), counts.tolist(), strict=True):
            if spec.column_bits(outputs, rate):
                blocks.append(RateBlock(rate, first, first + count, start))
            first, start = first + count, start + count * ((spec.column_bits(outputs, rate) + 7) // 8)
        return StoredOrder(order, tuple(blocks))

    return _ORDERS(tensors.get("rates", codes), (spec, outputs, columns), make)


def block_arguments(loop: Any, *numbers: int) -> list[int]:
    """A block of a product as `vqcompress.kernels.cpu.loops.sample_product` reads it."""
    return [loop.address, *numbers, *[0] * (BLOCK_NUMBERS - 1 - len(numbers))]


_CODEBOOKS: TensorCache[Tensor] = TensorCache()


def float_codebooks(tensors: Mapping[str, Tensor]) -> Tensor:
    """The codebooks or learned tables in float32, made once: layers share them."""
    codebooks = tensors["codebooks"]
    return _CODEBOOKS(codebooks, tuple(codebooks.shape), lambda: as_floats(codebooks.detach()))


def gradient_tensor(sums: np.ndarray) -> Tensor:
    """Sums of a loop, float64, as a gradient in float32."""
    return torch.from_numpy(sums).float()
