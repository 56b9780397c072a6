"""HQQ (half-quadratic quantization): asymmetric grids in groups of 64 along the inputs, zero points optimised."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers.peer import Peer, PeerWeight, UnfitForPeerError, installed

GROUP = 64


def _encode(bits: int, matrix: Tensor, moment: SecondMoment | None) -> PeerWeight:
    from hqq.core.quantize import Quantizer

    if matrix.shape[1] % GROUP:
        raise UnfitForPeerError(f"HQQ takes whole groups of {GROUP} columns, not {matrix.shape[1]} columns")
    packed, meta = Quantizer.quantize(
        matrix, nbits=bits, group_size=GROUP, axis=1, compute_dtype=torch.float16, device="cpu"
    )
    dense = Quantizer.dequantize(packed, meta)
    # Scales and zero points are computed in float32 and stored in the compute dtype.
    stored = packed.nbytes + 2 * (meta["scale"].numel() + meta["zero"].numel())
    return PeerWeight(dense.reshape(matrix.shape), stored)


def peers() -> list[Peer]:
    """``hqq-3`` and its like."""
    found = partial(installed, "hqq")
    return [
        Peer(f"hqq-{bits}", "hqq", partial(_encode, bits), found, "pip install hqq termcolor") for bits in (2, 3, 4, 8)
    ]
