"""Memory of the two steps of a calibrated quantization that held most: gradients of a whole call, and a wide layer.

``python benchmarks/stage_memory.py backward`` sends a random projection back through SDXL's UNet (``--model quarter``:
one of its form with 206 million parameters) in float32, for a batch of two latents of ``--side``; with ``--all`` every
activation is kept. ``python benchmarks/stage_memory.py encode`` encodes a weight of 1280 outputs and ``--columns``
at 3 bits. Both print what the process held of its own beyond the weights, or the second moment, that it was given.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from host_memory import held
from unet_step import NETWORKS, filled
from vqcompress.calibration.importance import layer_importance
from vqcompress.denoiser_calls import backward_projection
from vqcompress.matrix_view import is_quantizable
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import quantize_weight

OUTPUTS, SAMPLES, AT_ONCE = 1280, 65_536, 1024


@click.group(help=__doc__)
def main() -> None:
    torch.set_num_threads(1)


@main.command(help="Gradients of one call.")
@click.option("--model", default="sdxl", show_default=True, type=click.Choice(["sdxl", "quarter"]))
@click.option("--side", default=128, show_default=True, help="Of the latents: an eighth of the image's.")
@click.option("--all", "everything", is_flag=True, help="Keep every activation, as for a small denoiser.")
def backward(model: str, side: int, everything: bool) -> None:
    if everything:
        backward_projection.LARGE = 1 << 60
    torch.manual_seed(0)
    network = filled(model, "dense", 3, False, "cpu", torch.float32)
    call = NETWORKS[model][1](network, torch.float32, "cpu", side)
    layers = [name for name, module in network.named_modules() if is_quantizable(module)]
    report(lambda: layer_importance(network, layers, [call], seed=0))


@main.command(help="One wide layer.")
@click.option("--columns", default=11_520, show_default=True)
def encode(columns: int) -> None:
    weight = 0.02 * torch.randn(OUTPUTS, columns, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(correlated(columns), seen=SAMPLES, used=SAMPLES)
    report(lambda: quantize_weight(weight, moment, method="trellis", bits=3.0))


def correlated(columns: int) -> Tensor:
    """A second moment ``[columns, columns]``: neighbours have a correlation of .9, powers are log-normal."""
    size = (0.7 * torch.randn(columns, generator=torch.Generator().manual_seed(1))).exp()
    place, square = torch.arange(columns), torch.empty(columns, columns)
    for start in range(0, columns, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        square[part] = 0.9 ** (place[part, None] - place).abs() * size[part, None] * size
    return square


def report(step: Callable[[], object]) -> None:
    """Run it and print what it took."""
    gc.collect()
    with held() as before:
        time.sleep(0.2)
    start = time.process_time()
    with held() as peak:
        step()
    taken = time.process_time() - start
    click.echo(
        f"{peak['own_gb'] - before['own_gb']:.2f} GB beyond {before['own_gb']:.2f} GB, {taken:.0f} s of one core"
    )


if __name__ == "__main__":
    main()
