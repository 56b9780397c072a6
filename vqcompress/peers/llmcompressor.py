"""llm-compressor's GPTQ, in a process of its own: it needs other versions than ours of what we share."""

from __future__ import annotations

from functools import partial

from vqcompress.peers.isolated import Isolated
from vqcompress.peers.peer import Peer

LLMCOMPRESSOR = Isolated("llmcompressor.py", ("llmcompressor", "compressed-tensors"), "VQCOMPRESS_LLMCOMPRESSOR_PYTHON")


def peers() -> list[Peer]:
    """``llmcompressor-gptq-3`` and its like."""
    return [
        Peer(
            f"llmcompressor-gptq-{bits}",
            "llmcompressor-gptq",
            partial(LLMCOMPRESSOR.encode, bits=bits),
            LLMCOMPRESSOR.found,
            LLMCOMPRESSOR.install("datasets"),
            calibrated=True,
        )
        for bits in (2, 3, 4, 8)
    ]
