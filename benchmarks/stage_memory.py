"""Memory of the two steps of a calibrated quantization that held most: gradients of a whole call, and a wide layer.

``python benchmarks/stage_memory.py backward`` sends a random projection back through SDXL's UNet (``--model quarter``:
one of its form with 206 million parameters) in float32, for a batch of two latents of ``--side``; with ``--all`` every
activation is kept. ``python benchmarks/stage_memory.py encode`` encodes a weight of 1280 outputs and ``--columns``
at 3 bits. Both print what the process held of its own beyond the weights, or the second moment, that it was given.
``python benchmarks/stage_memory.py kept`` computes what autograd keeps of such a call, with all activations and with
what enters blocks alone, from shapes on the meta device; of attention it counts what a fused kernel keeps.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from host_memory import held
from unet_step import NETWORKS, filled
from vqcompress.calibration.importance import layer_importance, with_gradients
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


@main.command(help="What autograd keeps of one call: computed, nothing runs.")
@click.option("--model", default="sdxl", show_default=True, type=click.Choice(["sdxl", "quarter"]))
@click.option("--side", default=128, show_default=True, help="Of the latents.")
def kept(model: str, side: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[model][0](False).requires_grad_(False)
    call = with_gradients(NETWORKS[model][1](network, torch.float32, "meta", side))
    layers = [name for name, module in network.named_modules() if is_quantizable(module)]
    for large, what in ((1 << 60, "all activations"), (0, "what enters blocks")):
        backward_projection.LARGE = large
        with backward_projection.recomputing(network, layers):
            click.echo(f"{what}: {saved_bytes(network, call) / 1e9:.2f} GB")


def saved_bytes(network: nn.Module, call: dict[str, object]) -> int:
    """Bytes of all memory that autograd keeps of ``network(**call)`` beside the weights."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # or another tensor's storage might take the place of one that is gone
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    fused = patch.object(F, "scaled_dot_product_attention", FusedAttention.of)
    with fused, saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(**call, return_dict=False)
    del output
    return sum(sizes.values())


class FusedAttention(torch.autograd.Function):
    """Keeps queries, keys, values and the output, as kernels on CPUs and GPUs do; on the meta device torch would keep
    the matrix of all pairs."""

    @staticmethod
    def of(query: Tensor, key: Tensor, value: Tensor, *_: object, **options: object) -> Tensor:
        return FusedAttention.apply(query, key, value)

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


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
