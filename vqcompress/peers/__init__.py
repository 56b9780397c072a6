"""Other packages' formats of weights, each made by its own package, to compare with.

One module per package. Packages are imported on first use; those that must not share this process (another licence,
other versions of what we need) run in one of their own (`isolated`).
"""

from vqcompress.peers.allocated import AllocatedPeer
from vqcompress.peers.peer import Peer, PeerWeight, UnfitForPeerError
from vqcompress.peers.table import ALLOCATED, PEERS, peer_named

__all__ = ["ALLOCATED", "PEERS", "AllocatedPeer", "Peer", "PeerWeight", "UnfitForPeerError", "peer_named"]
