"""SDNQ, in a process of its own: it is under the GPL."""

from __future__ import annotations

from functools import partial

from vqcompress.peers.isolated import Isolated
from vqcompress.peers.peer import Peer

SDNQ = Isolated("sdnq.py", ("sdnq",), "VQCOMPRESS_SDNQ_PYTHON")


def peers() -> list[Peer]:
    """``sdnq-uint4`` and its like."""
    kinds = ("uint2", "uint3", "uint4", "uint5", "uint6", "int8")
    return [
        Peer(f"sdnq-{kind}", "sdnq", partial(SDNQ.encode, dtype=kind), SDNQ.found, SDNQ.install("diffusers"))
        for kind in kinds
    ]
