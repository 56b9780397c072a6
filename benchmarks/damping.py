"""How much damping layers of trained networks want: their error on inputs that were not calibrated on.

``python benchmarks/damping.py`` quantizes layers of networks that others trained (`trained_networks`) with the second
moments of one set of inputs, and weighs what each lost with those of another. Damping is the most that raises the
rate-distortion bound by at most a factor, the "rise" (`vqcompress.quantizers.error_feedback.usual_damping`). The table
has geometric means over layers, widths and seeds, relative to those at the first rise: of the error on the calibrated
inputs, and on the others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import torch
from torch import Tensor

from real_networks import SAMPLES, geometric_mean, recorded_moments, second_moments
from trained_networks import NETWORKS, TrainedNetwork
from vqcompress.matrix_view import to_matrix
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import error_feedback, quantize_weight
from vqcompress.quantizers.layer_error import relative_error

Errors = tuple[float, ...]
"""Relative error on the calibrated inputs, and on others."""


@click.command(help=__doc__)
@click.option("--networks", default="all-MiniLM-L6-v2,waifu2x upconv 7,Silero VAD", show_default=True)
@click.option("--layers", default=12, show_default=True, help="At most so many of each network, picked at random.")
@click.option("--method", default="trellis", show_default=True)
@click.option("--bits", default="2,3,4", show_default=True, help="Widths, comma-separated.")
@click.option("--rises", default="1.0001,1.1,1.25,1.5,2,3", show_default=True, help="Comma-separated.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--cache", default="out/networks", show_default=True, type=click.Path(path_type=Path))
def main(networks: str, layers: int, method: str, bits: str, rises: str, seeds: int, cache: Path) -> None:
    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    factors, widths = [float(rise) for rise in rises.split(",")], [float(width) for width in bits.split(",")]
    click.echo("| network | " + " | ".join(f"rise {rise:g}" for rise in factors) + " |")
    click.echo("|---|" + "---|" * len(factors))
    for name in networks.split(","):
        network = some_layers(NETWORKS[name](cache), layers)
        known = recorded_moments(name, network, cache)
        others = unseen_moments(network)
        found = [
            [errors_of(network, known, others, method, width, rise, seed) for width in widths for seed in range(seeds)]
            for rise in factors
        ]
        means = [tuple(geometric_mean(pair[i] for run in runs for pair in run) for i in (0, 1)) for runs in found]
        cells = [f"{own / means[0][0]:.3f} / {unseen / means[0][1]:.3f}" for own, unseen in means]
        click.echo(f"| {name} | " + " | ".join(cells) + " |")


def some_layers(network: TrainedNetwork, count: int) -> TrainedNetwork:
    """``network`` with at most ``count`` of its layers, the same in every run."""
    picked = random.Random(0).sample(network.layers, min(count, len(network.layers)))
    return replace(network, layers=tuple(picked))


def unseen_moments(network: TrainedNetwork) -> dict[str, Tensor]:
    """`second_moments` of the test inputs, for every layer."""
    sources = {network.prefixes.get(layer, layer) for layer in network.layers}
    found = second_moments(replace(network, layers=tuple(sources), prefixes={}, calibration=network.test))
    columns = {layer: to_matrix(network.module.get_submodule(layer).weight).shape[1] for layer in network.layers}
    return {layer: found[network.prefixes.get(layer, layer)][:n, :n] for layer, n in columns.items()}


def errors_of(
    network: TrainedNetwork,
    known: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    method: str,
    bits: float,
    rise: float,
    seed: int,
) -> list[Errors]:
    """Errors of all layers, calibrated with the moments ``known``."""
    found = []
    with mock.patch.object(error_feedback, "ALLOWED_RISE", rise):
        for layer in network.layers:
            weight = network.module.get_submodule(layer).weight.data
            moment = SecondMoment(known[layer], seen=SAMPLES, used=SAMPLES)
            decoded = quantize_weight(weight, moment, method=method, bits=bits, seed=seed).decode().to(weight)
            found.append(tuple(relative_error(weight, decoded, each[layer]) for each in (known, others)))
    return found


if __name__ == "__main__":
    main()
