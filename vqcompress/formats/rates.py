"""Column rates: how many codes each column of a weight gets, and where its bytes lie.

Reverse water-filling (Cover & Thomas, Elements of Information Theory, section 10.3.3): columns whose error counts for
more get more bits, until one more bit would reduce the error of every column by the same amount. The vector formats
therefore give every column its own rate, a number of bits or half bits (trellis) or of codes (additive). Columns of one
rate are stored together, rates ascending and columns ascending within a rate, so decoding sees a few dense blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes, unpack
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK
from vqcompress.formats.field_bounds import check_codebook, check_flag, check_integer
from vqcompress.formats.finite import not_finite
from vqcompress.formats.outliers import POSITIONS, VALUES, outlier_problem

MAX_RATE_BITS = 8
MAX_OUTLIERS = (1 << 31) - 1  # positions are int32


class RatedSpec(Protocol):
    """Fields and sizes of a format whose columns have rates."""

    @property
    def min_rate(self) -> int: ...

    @property
    def rate_bits(self) -> int: ...

    @property
    def code_bytes(self) -> int: ...

    @property
    def row_scales(self) -> bool: ...

    @property
    def column_scales(self) -> bool: ...

    @property
    def outliers(self) -> int: ...

    @property
    def codebook(self) -> str | None: ...

    @property
    def largest_rate(self) -> int:
        """The largest rate that the format has."""

    @property
    def rate_range(self) -> range:
        """The rates that columns can have."""

    def column_bits(self, outputs: int, rate: int) -> int:
        """Bits that a column of this rate takes."""


@dataclass(frozen=True)
class RateBlock:
    """Columns of one rate: ``columns [n]`` (int64) and their codes ``[n, bytes per column]`` (int8)."""

    rate: int
    columns: Tensor
    codes: Tensor


def pack_rates(rates: Tensor, min_rate: int, rate_bits: int) -> Tensor:
    """Rates ``[columns]`` -> int8 ``[1, bytes]``; each rate is stored as ``rate - min_rate`` in ``rate_bits`` bits."""
    return pack((rates - min_rate)[None], rate_bits)


def unpack_rates(packed: Tensor | None, columns: int, min_rate: int, rate_bits: int) -> Tensor:
    """The inverse of `pack_rates`, int64 ``[columns]``; without a stored tensor every column has ``min_rate``."""
    if packed is None:
        return torch.full((columns,), min_rate)
    return unpack(packed, rate_bits, columns)[0].long() + min_rate


def rates_shape(columns: int, rate_bits: int) -> tuple[int, int]:
    """Stored shape of packed rates."""
    return 1, packed_bytes(columns, rate_bits)


def rates_problem(packed: Tensor, columns: int, spec: RatedSpec, outputs: int) -> str | None:
    """Why these stored rates do not go with the weight, or ``None``."""
    return counts_problem(stored_counts(packed, columns, spec.rate_bits), spec, outputs)


def counts_problem(counts: list[int], spec: RatedSpec, outputs: int) -> str | None:
    """Why rates that occur so often do not go with the weight, or ``None``.

    None may be above the largest, and they must ask for as many codes as there are.
    """
    highest = spec.min_rate + max(number for number, count in enumerate(counts) if count)
    if highest > spec.largest_rate:
        return f"holds the rate {highest}, the format ends at {spec.largest_rate}"
    needed = sum(count * column_bytes(spec, outputs, spec.min_rate + number) for number, count in enumerate(counts))
    return None if needed == spec.code_bytes else f"needs {needed} bytes of codes, {spec.code_bytes} are stored"


def stored_counts(packed: Tensor, columns: int, rate_bits: int) -> list[int]:
    """How many columns have each of the ``2**rate_bits`` numbers that can be stored."""
    bits = np.unpackbits(packed.detach().cpu().reshape(-1).view(torch.uint8).numpy(), count=columns * rate_bits)
    numbers = bits.reshape(columns, rate_bits) @ (1 << np.arange(rate_bits - 1, -1, -1))
    return np.bincount(numbers, minlength=1 << rate_bits).tolist()


def column_bytes(spec: RatedSpec, outputs: int, rate: int) -> int:
    """Bytes of a column of this rate."""
    return packed_bytes(spec.column_bits(outputs, rate), 1)


def check_rate_fields(spec: RatedSpec) -> None:
    """Raise `ValueError` for fields of `RatedSpec`, column scales or outliers of another type or out of range."""
    check_integer("min_rate", spec.min_rate, 0, spec.largest_rate)
    check_integer("rate_bits", spec.rate_bits, 0, MAX_RATE_BITS)
    check_integer("code_bytes", spec.code_bytes, 0)
    check_integer("outliers", spec.outliers, 0, MAX_OUTLIERS)
    check_flag("row_scales", spec.row_scales)
    check_flag(COLUMN_SCALES_ON_DISK, spec.column_scales)
    check_codebook(spec.codebook)


def rated_shape_problem(spec: RatedSpec, outputs: int, columns: int) -> str | None:
    """Why a matrix of these sizes cannot be stored with these fields, or ``None``."""
    least, most = (columns * column_bytes(spec, outputs, rate) for rate in (spec.min_rate, spec.rate_range[-1]))
    if not least <= spec.code_bytes <= most:
        need = f"{least}" if least == most else f"{least} to {most}"
        return f"code_bytes is {spec.code_bytes}, {outputs}x{columns} weights of these rates take {need}"
    if spec.outliers > outputs * columns:
        return f"outliers is {spec.outliers}, the weight has {outputs * columns} elements"
    return None


def rated_content_problem(spec: RatedSpec, name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
    """What is wrong with the contents of a stored tensor, or ``None``; its shape and dtype are right already."""
    if name == "rates":
        return rates_problem(tensor, columns, spec, outputs)
    if name in (POSITIONS, VALUES):
        return outlier_problem(name, tensor, outputs, columns)
    return not_finite(tensor)


def rate_range(min_rate: int, rate_bits: int, largest: int) -> range:
    """The rates that columns can have: what ``rate_bits`` bits can say, up to ``largest``."""
    return range(min_rate, min(min_rate + (1 << rate_bits) - 1, max(largest, min_rate)) + 1)


def split_blocks(codes: Tensor, rates: Tensor, column_bytes: Callable[[int], int]) -> Iterator[RateBlock]:
    """Cut the flat code stream ``codes`` (any shape, int8) into one `RateBlock` per rate that occurs."""
    flat, start = codes.reshape(-1), 0
    for rate in torch.unique(rates).tolist():
        columns = torch.nonzero(rates == rate).flatten().to(codes.device)
        size = column_bytes(rate)
        stop = start + size * len(columns)
        yield RateBlock(rate, columns, flat[start:stop].view(len(columns), size))
        start = stop


def join_blocks(blocks: dict[int, Tensor]) -> Tensor:
    """Codes per rate ``{rate: int8 [n, bytes]}`` -> the flat stream, int8 ``[1, total bytes]``."""
    return torch.cat([blocks[rate].reshape(-1) for rate in sorted(blocks)])[None]
