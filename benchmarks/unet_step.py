"""One denoising step of a full-size network with packed weights against the same network in dense 16-bit floats.

``python benchmarks/unet_step.py`` makes SDXL's UNet and DiT-XL/2 at 1024 x 1024 pixels with guidance (a batch of two),
packs every layer but the first and last with random codes made on the device, and times one call: eager, as a CUDA
graph, and (with ``--compiled``) under ``torch.compile``. Peak memory is that of the weights and the call. ``kept`` is
the packed network with a dense budget that holds every layer, ``ahead`` decodes the next layers' weights on a second
stream of the GPU (`vqcompress.set_decode_ahead`).

On a CPU, ``--models shapes,quarter --sizes 16,32`` takes the embedded model's network and a UNet of SDXL's form with
206 million parameters, at a batch of two latents of these sizes. Calls of all ways alternate, and times are seconds of
the processor, which other processes disturb least. ``--small`` proves the script.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from synthetic import FORMATS, packed_weight
from synthetic_pipeline import sdxl_config
from vqcompress.embedded import EMBEDDED
from vqcompress.layers import set_decode_ahead, set_dense_budget, swap
from vqcompress.layers.decode_ahead import STEADY
from vqcompress.matrix_view import is_quantizable

AHEAD = "ahead"
UNTIL_AHEAD = 3 + STEADY  # calls: the first have keys and values of the prompt to compute
Inputs = dict[str, Any]
Step = Callable[[], object]


@click.command(help=__doc__)
@click.option("--models", default="sdxl,dit", show_default=True, help="Comma-separated.")
@click.option("--formats", default="trellis", show_default=True, help=f"Of {', '.join(FORMATS)}.")
@click.option("--bits", default=3, show_default=True, help="Bits a weight.")
@click.option("--compiled", is_flag=True, help="Time torch.compile too; compiling takes minutes.")
@click.option("--small", is_flag=True, help="Networks of a few layers.")
@click.option("--sizes", help="Sides of the latents, comma-separated [default: the network's own].")
@click.option("--rounds", default=7, show_default=True, help="Calls of each way on a CPU.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the numbers here as well.")
def main(
    models: str,
    formats: str,
    bits: int,
    compiled: bool,
    small: bool,
    sizes: str | None,
    rounds: int,
    json_path: str | None,
) -> None:
    if torch.cuda.is_available():
        lines = benchmark(models.split(","), formats.split(","), bits, compiled, small, "cuda")
    else:
        sides = [int(side) for side in sizes.split(",")] if sizes else [0]
        lines = [
            line
            for model in models.split(",")
            for side in sides
            for line in alternating(model, formats.split(","), bits, small, side, rounds)
        ]
    print(markdown(lines))
    if json_path:
        Path(json_path).write_text(json.dumps(lines, indent=1))


@torch.no_grad()
def benchmark(
    models: list[str], formats: list[str], bits: int, compiled: bool, small: bool, device: str
) -> list[dict[str, Any]]:
    """A line per model, weights (dense first) and way of running."""
    lines: list[dict[str, Any]] = []
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for model in models:
        dense: dict[str, dict[str, Any]] = {}
        ahead = [f"{name}, {AHEAD}" for name in formats] if device == "cuda" or small else []  # small: to prove this
        for weights in ("dense", *formats, *ahead):
            for line in measured(model, weights, bits, compiled, small, device, dtype):
                reference = dense.setdefault(line["way"], line)
                line["ratio_to_dense"] = line["seconds"] / reference["seconds"]
                line["bytes_saved"] = reference["peak_bytes"] - line["peak_bytes"]
                lines.append(line)
            release(device)
    return lines


@torch.no_grad()
def alternating(model: str, formats: list[str], bits: int, small: bool, side: int, rounds: int) -> list[dict[str, Any]]:
    """A line for the dense network, for each format, and for each with all weights kept; float32 on the CPU."""
    networks: dict[str, nn.Module] = {}
    for weights in ("dense", *formats, *(f"{name}, kept" for name in formats)):
        networks[weights] = filled(model, weights.removesuffix(", kept"), bits, small, "cpu", torch.float32)
        if weights.endswith("kept"):
            set_dense_budget(networks[weights], "all")
    inputs = NETWORKS[model][1](networks["dense"], torch.float32, "cpu", side)
    times: dict[str, list[float]] = {weights: [] for weights in networks}
    for _ in range(rounds + 1):
        for weights, network in networks.items():
            start = time.process_time()
            network(**inputs, return_dict=False)
            times[weights].append(time.process_time() - start)
    medians = {weights: statistics.median(taken[1:]) for weights, taken in times.items()}
    bytes_of = {weights: sum(p.nbytes for p in network.parameters()) for weights, network in networks.items()}
    dense_bytes = bytes_of["dense"]
    return [
        {
            "model": f"{model}, {inputs[next(iter(inputs))].shape[-1]}",
            "weights": weights,
            "way": "eager",
            "seconds": medians[weights],
            "weight_bytes": bytes_of[weights],
            "peak_bytes": bytes_of[weights] + (dense_bytes if weights.endswith("kept") else 0),
            "ratio_to_dense": medians[weights] / medians["dense"],
            "bytes_saved": dense_bytes - bytes_of[weights],
        }
        for weights in networks
    ]


def release(device: str) -> None:
    """Memory of the network before goes back, so that the next one's peak is its own."""
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def measured(
    model: str, weights: str, bits: int, compiled: bool, small: bool, device: str, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """The ways of running one network, from a fresh memory count."""
    network = filled(model, weights.removesuffix(f", {AHEAD}"), bits, small, device, dtype)
    if weights.endswith(AHEAD):
        set_decode_ahead(network)
    inputs = NETWORKS[model][1](network, dtype, device)
    ways = {"eager": lambda: network(**inputs, return_dict=False)}
    if compiled:
        fast = torch.compile(network, fullgraph=True)
        ways["compiled"] = lambda: fast(**inputs, return_dict=False)
    for way, step in ways.items():
        yield one_line(model, weights, way, network, step, device)
    if device == "cuda":
        graphs = {"CUDA graph": ways["eager"]} | ({"compiled, CUDA graph": ways["compiled"]} if compiled else {})
        for way, step in graphs.items():
            with recorded(step) as replay:
                yield one_line(model, weights, way, network, replay, device)


def filled(model: str, weights: str, bits: int, small: bool, device: str, dtype: torch.dtype) -> nn.Module:
    """The network with dense weights, or with random codes of a format."""
    with torch.device("meta"):
        network = NETWORKS[model][0](small)
    if weights != "dense":
        swap(network, random_codes(network, weights, bits, device))
    fill(network, dtype, device)
    return network


def one_line(model: str, weights: str, way: str, network: nn.Module, step: Step, device: str) -> dict[str, Any]:
    """Median seconds of a step, and the most memory that was in use."""
    for _ in range(UNTIL_AHEAD if weights.endswith(AHEAD) else 1):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(10 if device == "cuda" else 3):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    weight_bytes = sum(parameter.nbytes for parameter in network.parameters())
    return {
        "model": model,
        "weights": weights,
        "way": way,
        "seconds": statistics.median(times),
        "weight_bytes": weight_bytes,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else weight_bytes,
    }


@contextmanager
def recorded(step: Step) -> Iterator[Step]:
    """``step`` as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm up where the graph will be recorded
        for _ in range(2):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()
    yield graph.replay
    del kept, graph


def random_codes(network: nn.Module, name: str, bits: int, device: str) -> dict[str, Any]:
    """Packed weights for every layer but those that touch the latents."""
    kept = ("conv_in", "conv_out", "proj_out_2", "pos_embed")
    layers = {
        path: layer
        for path, layer in network.named_modules()
        if is_quantizable(layer) and path.split(".")[0] not in kept
    }
    codes = {path: packed_weight(name, tuple(layer.weight.shape), bits, device, 0) for path, layer in layers.items()}
    if name == "additive":  # of one component, one shared codebook
        first = next(iter(codes.values()))
        for weight in codes.values():
            weight.shared["codebooks"] = first.shared["codebooks"]
    return codes


def fill(network: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Contents for what is still on the meta device, small enough that activations stay finite."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                value = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(std=0.02)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=dtype, device=device), persistent=False)


def sdxl(small: bool) -> nn.Module:
    """The UNet of Stable Diffusion XL, or two blocks of it."""
    from diffusers import UNet2DConditionModel

    config = sdxl_config()
    if small:
        config |= {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": 1,
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 64,
        }
    return UNet2DConditionModel(**config).eval()


def quarter(small: bool) -> nn.Module:
    """A UNet of SDXL's form with half its channels and a fifth of its transformer blocks: 206 million parameters."""
    from diffusers import UNet2DConditionModel

    return sdxl(True) if small else UNet2DConditionModel(**sdxl_config(blocks=2, width=160)).eval()


def shapes(small: bool) -> nn.Module:
    """The network of the embedded model of that name."""
    from diffusers import UNet2DConditionModel

    config = json.loads((EMBEDDED["shapes"].path / "unet" / "config.json").read_text())
    return UNet2DConditionModel.from_config(config).eval()


def sdxl_inputs(network: nn.Module, dtype: torch.dtype, device: str, side: int = 0) -> Inputs:
    """Latents with and without the prompt."""
    size, config = side or network.config.sample_size, network.config

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    inputs: Inputs = {
        "sample": random(2, config.in_channels, size, size),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": random(2, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": random(2, pooled), "time_ids": random(2, 6)}
    return inputs


def dit(small: bool) -> nn.Module:
    """DiT-XL/2 for latents of 128 x 128, or two narrow blocks of it."""
    from diffusers import DiTTransformer2DModel

    size = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 128}
    if small:
        size = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "sample_size": 16}
    return DiTTransformer2DModel(**size, in_channels=4, out_channels=8, patch_size=2).eval()


def dit_inputs(network: nn.Module, dtype: torch.dtype, device: str, side: int = 0) -> Inputs:
    """Latents with and without the class."""
    size = side or network.config.sample_size
    return {
        "hidden_states": torch.randn(2, 4, size, size, dtype=dtype, device=device),
        "timestep": torch.tensor([500, 500], device=device),
        "class_labels": torch.tensor([207, 1000], device=device),
    }


NETWORKS: dict[str, tuple[Callable[[bool], nn.Module], Callable[..., Inputs]]] = {
    "sdxl": (sdxl, sdxl_inputs),
    "quarter": (quarter, sdxl_inputs),
    "shapes": (shapes, sdxl_inputs),
    "dit": (dit, dit_inputs),
}
"""Name -> makes the network (of a few layers, if asked), and its inputs."""


def markdown(lines: list[dict[str, Any]]) -> str:
    """A row per line."""
    rows = [
        "| model | weights | way | ms | of dense | weights MB | peak MB | saved MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [line["model"], line["weights"], line["way"], f"{1e3 * line['seconds']:.1f}"]
        cells += [f"{line['ratio_to_dense']:.3f}"]
        cells += [f"{line[key] / 1e6:.1f}" for key in ("weight_bytes", "peak_bytes", "bytes_saved")]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
