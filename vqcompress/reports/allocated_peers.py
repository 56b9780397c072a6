"""Other packages' formats with bits allocated as ours are: by what an error of each layer costs.

The costs are those that the compressed folder was allocated by. A layer's error in each width is measured, not
modelled: the package quantizes it in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vqcompress.checkpoint import LayerRecord
from vqcompress.errors import VQCompressError
from vqcompress.peers import AllocatedPeer, Peer
from vqcompress.quantizers.bit_allocation import DENSE
from vqcompress.quantizers.scalar_allocation import Choice, LayerChoices, allocate_choices
from vqcompress.reports.peers import PeerWeights

# Of the mean. Less than ours have: from 3 bits the next width down is 2, and three quarters would forbid all of them.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Width(Choice):
    """A layer in one of the package's widths, or left dense (None)."""

    peer: Peer | None


def single_peers(peers: Sequence[Peer | AllocatedPeer]) -> list[Peer]:
    """The formats that weights must be quantized in, each once, in the order of first need."""
    widths = (peer.widths if isinstance(peer, AllocatedPeer) else (peer,) for peer in peers)
    return list(dict.fromkeys(each for family in widths for each in family))


def importance_of(folders: Iterable[Sequence[LayerRecord]], denoiser: str) -> dict[str, float]:
    """Layer of ``denoiser`` -> what its error costs, by the first folder's records that say it.

    Raises `VQCompressError` where none does.
    """
    for records in folders:
        own = [record for record in records if record.component == denoiser]
        if own and all(record.importance is not None for record in own):
            return {record.layer: record.importance or 0.0 for record in own}
    raise VQCompressError(
        "formats of other packages can be allocated only by what errors of each layer cost, and none of the folders "
        "says that: compare with one that was made with --budget model as well"
    )


def allocated_weights(
    peer: AllocatedPeer, made: Mapping[str, PeerWeights], weights: Mapping[str, int], importance: Mapping[str, float]
) -> PeerWeights:
    """A width of ``peer`` for each layer, in no more bytes than its uniform width stores.

    ``made`` are its widths by name, weighed; ``weights`` counts the weights of all layers. Layers that the uniform
    width cannot take stay dense, as they do in it.
    """
    uniform = made[peer.uniform.name]
    offers = {
        name: LayerChoices(weights[name], importance[name], tuple(_offers(peer, made, name)))
        for name in uniform.weights
    }
    total = sum(offer.weights for offer in offers.values())
    chosen = allocate_choices(offers, 8 * uniform.nbytes / total, LEAST_SHARE) if offers else {}
    result = PeerWeights(peer.name, peer.curve, uniform.packages, dense=dict(uniform.dense), scheme="mixed")
    for name, width in chosen.items():
        if width.peer is None:
            result.dense[name] = "its error would cost more than its bits"
        else:
            result.weights[name] = made[width.peer.name].weights[name]
            result.notes[f"in {width.peer.name}"] += 1
    return result


def _offers(peer: AllocatedPeer, made: Mapping[str, PeerWeights], name: str) -> Iterable[Width]:
    for each in peer.widths:
        if (weight := made[each.name].weights.get(name)) is not None:
            yield Width(each, stored=weight.bits_per_weight, left=weight.left)
    yield Width(None, stored=DENSE, left=0.0)
