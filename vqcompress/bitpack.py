"""Small unsigned integers <-> packed bytes. Pure: tensors in, tensors out.

Bits run from the most significant of each number and of each byte, so the codes of a sequence read as one
long binary number: the sliding window of a trellis code (Tseng et al. 2024, arXiv 2406.11235, section 3.1)
is then a contiguous run of the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    padded = torch.zeros(*lead, packed_bytes(n, bits) * 8, dtype=torch.uint8, device=values.device)
    places = torch.arange(bits - 1, -1, -1, device=values.device)
    padded[..., : n * bits] = ((values.unsqueeze(-1).to(torch.int32) >> places) & 1).to(torch.uint8).flatten(-2)
    weights = 1 << torch.arange(7, -1, -1, device=values.device, dtype=torch.int32)
    packed = (padded.unflatten(-1, (-1, 8)).to(torch.int32) * weights).sum(-1)
    return packed.to(torch.uint8).view(torch.int8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """int8 bytes ``[..., m]`` -> int32 numbers ``[..., count]`` of ``bits`` bits each."""
    if bits == 8:
        return packed[..., :count].to(torch.int32) & 0xFF
    places = torch.arange(7, -1, -1, device=packed.device, dtype=torch.int32)
    stream = ((packed.to(torch.int32).unsqueeze(-1) >> places) & 1).flatten(-2)
    weights = 1 << torch.arange(bits - 1, -1, -1, device=packed.device, dtype=torch.int32)
    return (stream[..., : count * bits].unflatten(-1, (count, bits)) * weights).sum(-1, dtype=torch.int32)
