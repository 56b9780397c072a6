"""Other packages' formats as variants of a comparison: the same layers, calibration and images, bytes as stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.calibration.diversity import choose_diverse
from vqcompress.calibration.prompts import load_prompts
from vqcompress.calibration.record import RecordingLimits, record_moments
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers import AllocatedPeer, Peer, UnfitForPeerError
from vqcompress.quantizers.layer_error import output_power
from vqcompress.recipe import Recipe

MEMORY_BUDGET = 4_000_000_000  # bytes of second moments held at once


@dataclass(frozen=True)
class SpooledWeight:
    """A decoded weight on disk, the bytes that its package stores for it, and ``tr(E H Eᵀ)`` of what is lost."""

    path: Path
    nbytes: int
    bits_per_weight: float
    left: float = math.nan

    def decode(self) -> Tensor:
        """The dense weight, float32."""
        return load_file(self.path)["weight"]


@dataclass
class PeerWeights:
    """What the peer ``name`` made of the denoiser: layer -> weight, and layer -> why it stays dense. ``curve`` is its
    format, and ``scheme`` as `Variant.scheme`."""

    name: str
    curve: str
    packages: str
    weights: dict[str, SpooledWeight] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    scheme: str = ""

    @property
    def made_by(self) -> str:
        """The packages, and what they made of how many layers where that is not what was asked for."""
        return "; ".join([self.packages, *(f"{count} layers {note}" for note, count in self.notes.items())])

    @property
    def nbytes(self) -> int:
        """Bytes of all layers that it quantized."""
        return sum(weight.nbytes for weight in self.weights.values())


def missing_peers(peers: Sequence[Peer | AllocatedPeer]) -> tuple[str, ...]:
    """A sentence for each peer whose package is not installed, with the command that installs it."""
    return tuple(
        f"{peer.name}: not installed. To compare with it: {peer.install}" for peer in peers if not peer.found()
    )


def calibration_run(pipeline: Pipeline, architecture: Architecture, recipe: Recipe) -> SamplingRun:
    """The sampling that ``recipe`` calibrated on, so that peers learn from the same inputs."""
    calibration = recipe.calibration
    prompts = load_prompts(calibration.prompts or architecture.prompt_set).prompts
    chosen = choose_diverse(prompts, calibration.count, recipe.seed)
    return SamplingRun(pipeline, architecture, chosen, recipe.seed, calibration.sampling, calibration.batch_size)


def quantize_with_peers(
    peers: Sequence[Peer],
    layers: Mapping[str, Tensor],
    moments: Callable[[], Iterator[tuple[str, SecondMoment | None]]] | None,
    spool: Path,
    progress: Callable[[int, int], None],
    *,
    weighed: bool = False,
) -> list[PeerWeights]:
    """``layers`` (name -> dense weight) by every installed one of ``peers``, spooled below the folder ``spool``.

    ``moments`` gives (layer, second moment) one after the other; it is called once, if a peer is calibrated or what is
    lost is to be ``weighed`` with them.
    """
    made = {peer: PeerWeights(peer.name, peer.curve, peer.found()) for peer in peers if peer.found()}
    done, total = 0, len(made) * len(layers)

    def take(peer: Peer, name: str, moment: SecondMoment | None) -> None:
        nonlocal done
        path = spool / f"{peer.name}-{len(made[peer].weights)}.safetensors"
        _take(peer, made[peer], name, layers[name], moment, path, weighed)
        done += 1
        progress(done, total)

    waiting = [peer for peer in made if moments is not None and (weighed or peer.calibrated)]
    for peer in made:
        if peer not in waiting:
            for name in layers:
                take(peer, name, None)
    if waiting and moments is not None:
        for name, moment in moments():
            for peer in waiting:
                take(peer, name, moment)
    return list(made.values())


def _take(
    peer: Peer,
    result: PeerWeights,
    name: str,
    weight: Tensor,
    moment: SecondMoment | None,
    path: Path,
    weighed: bool,
) -> None:
    try:
        quantized = peer.quantize(weight, moment)
    except UnfitForPeerError as error:
        result.dense[name] = str(error)
        return
    save_file({"weight": quantized.dense.contiguous()}, path)
    if quantized.note:
        result.notes[quantized.note] += 1
    left = output_power(weight.float() - quantized.dense, moment) if weighed else math.nan
    result.weights[name] = SpooledWeight(path, quantized.nbytes, quantized.bits_per_weight, left)


def denoiser_moments(
    run: SamplingRun, layers: Sequence[str], samples_per_call: int | None, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, SecondMoment | None]]:
    """(layer, second moment of its inputs) of the denoiser; None where no input reached it."""
    limits = RecordingLimits(MEMORY_BUDGET, samples_per_call)
    component = run.architecture.denoiser
    for names, moment in record_moments(run, component, layers, limits, lambda done, total, _: progress(done, total)):
        yield from ((name, moment if moment.seen else None) for name in names)


@contextmanager
def exchanged_weights(module: nn.Module, weights: Mapping[str, SpooledWeight]) -> Iterator[None]:
    """Inside the block, the layers called by ``weights`` have those weights."""
    before = {}
    try:
        for name, weight in weights.items():
            parameter = module.get_parameter(f"{name}.weight")
            before[name] = parameter.data
            parameter.data = weight.decode().to(parameter.data)
        yield
    finally:
        for name, data in before.items():
            module.get_parameter(f"{name}.weight").data = data
