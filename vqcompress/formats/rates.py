"""Column rates: how many codes each column of a weight gets, and where its bytes lie.

Reverse water-filling (Cover & Thomas, Elements of Information Theory, section 10.3.3): columns whose error counts for
more get more bits, until one more bit would reduce the error of every column by the same amount. The vector formats
therefore give every column its own rate, an integer number of bits (trellis) or of codes (additive). Columns of one
rate are stored together, rates ascending and columns ascending within a rate, so decoding sees a few dense blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes, unpack


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


def code_problem(rates: Tensor, largest: int, column_bytes: Callable[[int], int], code_bytes: int) -> str | None:
    """Why columns of these rates, of at most ``largest``, cannot be a stream of ``code_bytes``, or ``None``."""
    if int(rates.max()) > largest:
        return f"a column has rate {int(rates.max())}, the format ends at {largest}"
    needed = sum(column_bytes(rate) * int((rates == rate).sum()) for rate in rates.unique().tolist())
    return None if needed == code_bytes else f"its rates need {needed} bytes of codes, {code_bytes} are stored"


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
