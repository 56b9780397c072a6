"""Output error of every quantizer on single layers: ``tr(E H Eᵀ) / tr(W H Wᵀ)`` against everything that is stored.

``python benchmarks/layer_error.py --layers FILE`` reads layers ``NAME.W [out, in]`` and inputs ``NAME.X [samples, in]``
from a safetensors file; without it, three such layers are made from a seed: a, Gaussian weights and independent inputs;
b, the same weights with correlated inputs (singular values 1/i); c, heavy-tailed weights (Student, 4 degrees of
freedom) with correlated inputs. Each method runs on one thread. Second moments are exact, but for "held-out": there
methods learn from the even samples of X, are told their number, and are scored on the odd ones. "gap" is what a method
spends in bits a weight above the rate-distortion bound of Gaussian weights (`vqcompress.moments.rate_distortion`). A
Markdown table goes to standard output, and the numbers to ``--json``. ``--peers`` adds other packages' formats
(`vqcompress.peers`), comma-separated or "all"; those that are not installed are named with the command that installs
them. Seconds of those that run in a process of their own are not counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqcompress.formats.trellis_table import STATE_BITS, max_rate
from vqcompress.moments.rate_distortion import gap_in_bits, spectrum
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers import PEERS, AllocatedPeer, Peer, UnfitForPeerError, peer_named
from vqcompress.quantizers import GPTQSettings, RTNSettings, TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error
from water_sic import water_sic

BLIND = ("rtn", "faiss", "nf4", "fp4", "hqq", "torchao", "sdnq")
"""These never look at inputs: what they learn is the same."""
Quantize = Callable[[Tensor, Tensor | SecondMoment | None], tuple[Tensor, float]]
"""``(weight [out, columns], second moment) -> (decoded weight, bits a weight)``."""


@dataclass(frozen=True)
class Layer:
    """``weight [out, columns]`` and inputs ``[samples, columns]``."""

    name: str
    weight: Tensor
    inputs: Tensor

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of the second moment of the inputs, float64 ``[columns]``."""
        return spectrum(SecondMoment(second_moment(self.inputs)))

    @property
    def can_hold_out(self) -> bool:
        """Whether half of the samples still determine a second moment."""
        return len(self.inputs) >= 4 * self.inputs.shape[1]


@dataclass(frozen=True)
class Result:
    """One method on one layer; ``held_out`` is None where the layer has too few inputs, and ``seconds`` for other
    packages, of which some run in processes of their own."""

    method: str
    layer: str
    bits: float
    error: float
    gap: float
    held_out: float | None
    seconds: float | None


@click.command(help=__doc__)
@click.option("--layers", type=click.Path(exists=True, dir_okay=False), help="safetensors file with NAME.W and NAME.X.")
@click.option("--bits", default="2,2.5,3,3.1,3.5,4", show_default=True, help="Bit budgets, comma-separated.")
@click.option("--only", default="", help="Run the methods whose name contains one of these words, comma-separated.")
@click.option("--peers", default="", help="Other packages' formats as well, comma-separated, or 'all'.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write all results here as well.")
@click.option("--states", is_flag=True, help="Every state size of the trellis, at each whole number of bits.")
@click.option("--tails", is_flag=True, help="Every answer of the trellis to heavy tails, at each of the budgets.")
@click.option("--seed", default=0, show_default=True)
def main(
    layers: str | None, bits: str, only: str, peers: str, states: bool, tails: bool, json_path: str | None, seed: int
) -> None:
    torch.set_num_threads(1)
    data = read_layers(layers) if layers else make_layers(seed)
    results = []
    budgets = [float(b) for b in bits.split(",")]
    table = state_sizes if states else answers_to_tails if tails else methods
    asked, missing = other_packages(peers)
    chosen = {
        name: run for name, run in table(budgets, seed).items() if any(w.strip() in name for w in only.split(","))
    }
    for name, quantize in {**chosen, **asked}.items():
        warm_up(quantize)
        for layer in data:
            try:
                results.append(measure(name, quantize, layer, timed=name in chosen))
            except UnfitForPeerError as refusal:
                missing.append(f"{name}, layer {layer.name}: {refusal}")
        click.echo(f"{name}: done", err=True)
    click.echo(markdown(results, [layer.name for layer in data]))
    for sentence in missing:
        click.echo(f"\n{sentence}")
    if json_path:
        Path(json_path).write_text(json.dumps([asdict(result) for result in results], indent=1))


def other_packages(names: str) -> tuple[dict[str, Quantize], list[str]]:
    """The peers called ``names`` that are installed, and a sentence about each of the others."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    found = list(PEERS.values()) if asked == ["all"] else [peer_named(name) for name in asked]
    if many := [peer.name for peer in found if isinstance(peer, AllocatedPeer)]:
        raise click.ClickException(f"{many[0]} allocates bits over many layers, and here each is alone")
    peers = [peer for peer in found if isinstance(peer, Peer)]
    absent = [f"{peer.name} is not installed: {peer.install}" for peer in peers if not peer.found()]
    return {peer.name: theirs(peer) for peer in peers if peer.found()}, absent


def theirs(peer: Peer) -> Quantize:
    """A format of another package."""

    def run(weight: Tensor, moment: Tensor | SecondMoment | None) -> tuple[Tensor, float]:
        made = peer.quantize(weight, None if moment is None else SecondMoment.of(moment))
        return made.decode(), made.bits_per_weight

    return run


def methods(budgets: list[float], seed: int) -> dict[str, Quantize]:
    """Everything that is compared, by the name it has in the table."""
    table: dict[str, Quantize] = {}
    for bits in budgets:
        if bits == int(bits):  # only these two have rates in between
            table |= whole_bits(int(bits), seed)
        table[f"WaterSIC {bits:g}, entropy"] = partial(water_sic, bits=bits)
        table[f"trellis {bits:g}, fast"] = ours("trellis", bits, seed, TrellisSettings(state_bits=10))
        table[f"trellis {bits:g}, default"] = ours("trellis", bits, seed)
        table[f"trellis {bits:g}, best"] = ours("trellis", bits, seed, TrellisSettings(state_bits=16))
    return table


def state_sizes(budgets: list[float], seed: int) -> dict[str, Quantize]:
    """The trellis with each state size, all else by default."""
    return {
        f"trellis {bits:g}, {size}-bit state": ours("trellis", bits, seed, TrellisSettings(state_bits=size))
        for bits in budgets
        for size in STATE_BITS
        if max_rate(size) >= bits
    }


def answers_to_tails(budgets: list[float], seed: int) -> dict[str, Quantize]:
    """The trellis with a Gaussian table, with a heavier one and row scales where model selection says so, and
    rotated."""
    answers = {
        "Gaussian table": TrellisSettings(tail=0.0, rotation=False),
        "selected table": TrellisSettings(rotation=False),
        "rotation": TrellisSettings(rotation=True),
        "default": TrellisSettings(),
    }
    return {
        f"trellis {bits:g}, {name}": ours("trellis", bits, seed, settings)
        for bits in budgets
        for name, settings in answers.items()
    }


def whole_bits(bits: int, seed: int) -> dict[str, Quantize]:
    """Methods with ``bits`` a code (or as many codebooks of 8 bits for 8 weights), scales and codebooks on top."""
    return {
        f"rtn {bits}-bit g64": ours("rtn", bits, seed, RTNSettings(group_size=64)),
        f"gptq {bits}-bit g64, float16 scales": ours("gptq", bits, seed, GPTQSettings(64, scale_bits=16)),
        f"gptq {bits}-bit g32, 6-bit scales": ours("gptq", bits, seed, GPTQSettings(32, scale_bits=6)),
        f"gptq {bits}-bit g16, 6-bit scales": ours("gptq", bits, seed, GPTQSettings(16, scale_bits=6)),
        f"faiss residual {bits}x8": faiss_residual(bits),
        **{f"{name} {bits}": ours(name, bits, seed) for name in ("kmeans", "additive")},
    }


def ours(method: str, bits: float, seed: int, settings: object | None = None) -> Quantize:
    """A method of `quantize_weight`."""

    def run(weight: Tensor, moment: Tensor | SecondMoment | None) -> tuple[Tensor, float]:
        quantized = quantize_weight(weight, moment, method=method, bits=bits, seed=seed, settings=settings)
        return quantized.decode(), quantized.bits_per_weight

    return run


def faiss_residual(codebooks: int, dimension: int = 8) -> Quantize:
    """faiss' ResidualQuantizer: vectors along the inputs, outputs of unit RMS, beam 16, refined codebooks, no second
    moment."""

    def run(weight: Tensor, moment: Tensor | SecondMoment | None) -> tuple[Tensor, float]:
        import faiss

        faiss.omp_set_num_threads(1)
        scale = weight.square().mean(1, keepdim=True).sqrt().half().float()
        vectors = (weight / scale).reshape(-1, dimension).numpy()
        quantizer = faiss.ResidualQuantizer(dimension, codebooks, 8)
        quantizer.max_beam_size = 16
        quantizer.train_type = faiss.ResidualQuantizer.Train_refine_codebook
        quantizer.train(vectors)
        codes = quantizer.compute_codes(vectors)
        learned = faiss.vector_to_array(quantizer.codebooks)
        rounded = torch.from_numpy(learned).half()
        faiss.copy_array_to_vector(rounded.float().numpy(), quantizer.codebooks)
        decoded = torch.from_numpy(quantizer.decode(codes)).reshape(weight.shape) * scale
        stored_bits = 8 * codes.size + 16 * rounded.numel() + 16 * len(scale)
        return decoded, stored_bits / weight.numel()

    return run


def measure(name: str, quantize: Quantize, layer: Layer, *, timed: bool = True) -> Result:
    """CPU seconds of one run, if it is to be ``timed``, its bits and errors."""
    moment = second_moment(layer.inputs)
    start = time.process_time()
    decoded, bits = quantize(layer.weight, moment)
    seconds = time.process_time() - start if timed else None
    held_out = None
    if layer.can_hold_out:
        learned = decoded
        if not name.startswith(BLIND):
            learned, _ = quantize(layer.weight, estimate(layer.inputs[::2]))
        held_out = relative_error(layer.weight, learned, second_moment(layer.inputs[1::2]))
    error = relative_error(layer.weight, decoded, moment)
    return Result(name, layer.name, bits, error, gap_in_bits(layer.spectrum, bits, error), held_out, seconds)


def warm_up(quantize: Quantize) -> None:
    """Compile what is compiled on first use, outside the clock."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 64, generator=generator) / torch.arange(1, 65)
    quantize(torch.randn(512, 64, generator=generator), second_moment(inputs))


def second_moment(inputs: Tensor) -> Tensor:
    """``E[x xᵀ] [columns, columns]``, float32 as recorded."""
    return (inputs.double().t() @ inputs.double() / len(inputs)).float()


def estimate(inputs: Tensor) -> SecondMoment:
    """`second_moment` as a recording of so many samples."""
    return SecondMoment(second_moment(inputs), seen=len(inputs), used=len(inputs))


def read_layers(path: str) -> list[Layer]:
    """Layers ``NAME.W`` with inputs ``NAME.X``."""
    tensors = load_file(path)
    names = sorted(key[:-2] for key in tensors if key.endswith(".W"))
    return [Layer(name, tensors[f"{name}.W"], tensors[f"{name}.X"]) for name in names]


def make_layers(seed: int) -> list[Layer]:
    """The three layers of the docstring."""
    generator = torch.Generator().manual_seed(seed)
    columns = 640
    gaussian = torch.randn(640, columns, generator=generator)
    chi = torch.randn(4, 1280, columns, generator=generator).square().mean(0).sqrt()
    student = torch.randn(1280, columns, generator=generator) / chi
    identity = torch.eye(columns) * columns**0.5
    return [
        Layer("a", gaussian, identity),
        Layer("b", gaussian, correlated_inputs(4096, columns, generator)),
        Layer("c", student, correlated_inputs(4096, columns, generator)),
    ]


def correlated_inputs(samples: int, columns: int, generator: torch.Generator) -> Tensor:
    """Inputs ``[samples, columns]`` with singular values 1, 1/2, 1/3, …"""
    left, _ = torch.linalg.qr(torch.randn(samples, columns, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    return samples**0.5 * left / torch.arange(1, columns + 1) @ right


def markdown(results: list[Result], layers: list[str]) -> str:
    """One row per method; errors, gaps, held-out errors and seconds, layer by layer."""
    head = [
        "method",
        "bits " + " / ".join(layers),
        *layers,
        "gap " + " / ".join(layers),
        *(f"{x} held-out" for x in layers),
        "CPU s " + " / ".join(layers),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in dict.fromkeys(result.method for result in results):
        row = by_layer(results, method, layers)
        cells = [method, " / ".join(row("bits", ".3f")), *row("error", ".3g"), " / ".join(row("gap", ".3f"))]
        lines.append("| " + " | ".join([*cells, *row("held_out", ".3g"), " / ".join(row("seconds", ".2f"))]) + " |")
    return "\n".join(lines)


def by_layer(results: list[Result], method: str, layers: list[str]) -> Callable[[str, str], list[str]]:
    """(field, format) -> the method's numbers, layer by layer; a dash where it has none."""
    found = {result.layer: result for result in results if result.method == method}

    def numbers(field: str, form: str) -> list[str]:
        values = [getattr(found.get(layer), field, None) for layer in layers]
        return ["–" if value is None else format(value, form) for value in values]

    return numbers


if __name__ == "__main__":
    main()
