"""Every peer by its name."""

from __future__ import annotations

from difflib import get_close_matches

from vqcompress.errors import VQCompressError
from vqcompress.peers import gguf, gptqmodel, hqq, llmcompressor, nf4, sdnq, torchao
from vqcompress.peers.allocated import AllocatedPeer, allocated_peers
from vqcompress.peers.peer import Peer

_MODULES = (gguf, nf4, hqq, torchao, sdnq, llmcompressor, gptqmodel)

PEERS: dict[str, Peer] = {peer.name: peer for module in _MODULES for peer in module.peers()}
ALLOCATED: dict[str, AllocatedPeer] = {peer.name: peer for peer in allocated_peers(list(PEERS.values()))}


def peer_named(name: str) -> Peer | AllocatedPeer:
    """The peer called ``name``. Raises `VQCompressError` with those of similar names for an unknown one."""
    known: dict[str, Peer | AllocatedPeer] = {**ALLOCATED, **PEERS}
    if name in known:
        return known[name]
    similar = get_close_matches(name, known, n=3, cutoff=0.5)
    one_each = {peer.curve: peer.name for peer in reversed(PEERS.values())}
    choices = f"did you mean {', '.join(similar)}?" if similar else f"there are {', '.join(one_each.values())}, …"
    raise VQCompressError(f"unknown peer {name!r}; {choices}")
