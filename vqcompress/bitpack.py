"""Small unsigned integers <-> packed bytes. Pure: tensors in, tensors out.

Bits run from the most significant of each number and of each byte, so the codes of a sequence read as one
long binary number: the sliding window of a trellis code (Tseng et al. 2024, arXiv 2406.11235, section 3.1)
is then a contiguous run of the stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

AT_ONCE = 1 << 19  # numbers: those that are being packed or unpacked take forty bytes and more each


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` numbers of ``bits`` bits take, the last byte padded with zeros."""
    return -(-count * bits // 8)


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers ``[..., n]`` in ``[0, 2**bits)`` -> int8 bytes ``[..., ceil(n * bits / 8)]``.

    Raises ``ValueError`` when a value does not fit: a code that wraps silently is a corrupt model.
    """
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= 1 << bits):
        raise ValueError(f"values from {int(values.min())} to {int(values.max())} do not fit in {bits} bits")
    lead, n = values.shape[:-1], values.shape[-1]
    rows, size = values.reshape(math.prod(lead), n), packed_bytes(n, bits)
    packed = torch.empty(len(rows), size, dtype=torch.int8, device=values.device)
    for part, into in zip(*(each.split(_rows_at_once(n)) for each in (rows, packed)), strict=True):
        into.copy_(_packed_rows(part, bits))
    return packed.view(*lead, size)


def _rows_at_once(numbers: int) -> int:
    return max(1, AT_ONCE // max(1, numbers))


def _packed_rows(rows: Tensor, bits: int) -> Tensor:
    count, n = rows.shape
    padded = torch.zeros(count, packed_bytes(n, bits) * 8, dtype=torch.uint8, device=rows.device)
    places = torch.arange(bits - 1, -1, -1, device=rows.device)
    padded[..., : n * bits] = ((rows.unsqueeze(-1).to(torch.int32) >> places) & 1).to(torch.uint8).flatten(-2)
    weights = 1 << torch.arange(7, -1, -1, device=rows.device, dtype=torch.int32)
    packed = (padded.unflatten(-1, (-1, 8)).to(torch.int32) * weights).sum(-1)
    return packed.to(torch.uint8).view(torch.int8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """int8 bytes ``[..., m]`` -> int32 numbers ``[..., count]`` of ``bits`` bits each."""
    if bits == 8:
        return packed[..., :count].to(torch.int32) & 0xFF
    lead, size = packed.shape[:-1], packed.shape[-1]
    rows = packed.reshape(math.prod(lead), size)
    numbers = torch.empty(len(rows), count, dtype=torch.int32, device=packed.device)
    for part, into in zip(*(each.split(_rows_at_once(count)) for each in (rows, numbers)), strict=True):
        into.copy_(_unpacked_rows(part, bits, count))
    return numbers.view(*lead, count)


def _unpacked_rows(rows: Tensor, bits: int, count: int) -> Tensor:
    places = torch.arange(7, -1, -1, device=rows.device, dtype=torch.int32)
    stream = ((rows.to(torch.int32).unsqueeze(-1) >> places) & 1).flatten(-2)
    weights = 1 << torch.arange(bits - 1, -1, -1, device=rows.device, dtype=torch.int32)
    return (stream[..., : count * bits].unflatten(-1, (count, bits)) * weights).sum(-1, dtype=torch.int32)
