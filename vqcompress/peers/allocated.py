"""Formats of one package with a width for each layer: allocated bits, to compare with allocated bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vqcompress.peers.peer import Peer

SUFFIX = "-allocated"


@dataclass(frozen=True)
class AllocatedPeer:
    """A width of one format for each layer, in as many bytes as ``uniform`` stores of all layers.

    ``widths`` are the formats to choose from, ``uniform`` among them.
    """

    uniform: Peer
    widths: tuple[Peer, ...]

    @property
    def name(self) -> str:
        """``hqq-3-allocated``"""
        return self.uniform.name + SUFFIX

    @property
    def curve(self) -> str:
        """That of its format."""
        return self.uniform.curve

    @property
    def install(self) -> str:
        """The command that installs the package."""
        return self.uniform.install

    def found(self) -> str:
        """The package and its version, or nothing."""
        return self.uniform.found()


def allocated_peers(peers: Sequence[Peer]) -> list[AllocatedPeer]:
    """One for each of ``peers`` whose format has several widths among them."""
    families = {peer.curve: tuple(each for each in peers if each.curve == peer.curve) for peer in peers}
    return [AllocatedPeer(peer, families[peer.curve]) for peer in peers if len(families[peer.curve]) > 1]
