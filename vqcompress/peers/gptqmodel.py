"""GPTQModel's GPTQ, in a process of its own: its versions want another torch than ours."""

from __future__ import annotations

from functools import partial

from vqcompress.peers.isolated import Isolated
from vqcompress.peers.peer import Peer

GPTQMODEL = Isolated("gptqmodel.py", ("gptqmodel",), "VQCOMPRESS_GPTQMODEL_PYTHON")


def peers() -> list[Peer]:
    """``gptqmodel-3`` and its like."""
    return [
        Peer(
            f"gptqmodel-{bits}",
            "gptqmodel",
            partial(GPTQMODEL.encode, bits=bits),
            GPTQMODEL.found,
            GPTQMODEL.install(),
            calibrated=True,
        )
        for bits in (2, 3, 4, 8)
    ]
