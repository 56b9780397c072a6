"""bitsandbytes' 4-bit formats with blocks of 64, as diffusers stores them by default (float32 scales)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers.peer import Peer, PeerWeight, installed

BLOCK = 64


def _encode(kind: str, matrix: Tensor, moment: SecondMoment | None) -> PeerWeight:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(matrix, blocksize=BLOCK, quant_type=kind)
    return PeerWeight(dequantize_4bit(packed, state).reshape(matrix.shape), packed.nbytes + state.absmax.nbytes)


def peers() -> list[Peer]:
    """``nf4`` and ``fp4``."""
    found = partial(installed, "bitsandbytes")
    return [Peer(kind, kind, partial(_encode, kind), found, "pip install bitsandbytes") for kind in ("nf4", "fp4")]
