"""Products with packed weights against dense ones, per layer shape and number of samples, on this machine's GPU or CPU.

``python benchmarks/matmul.py`` times ours, the dense product and whichever peers are installed (bitsandbytes NF4,
torchao int4 weight-only, AQLM's kernels, diffusers' GGUF), all in one run. So that no cache holds the weights from call
to call, as in a model none would, enough copies of each layer are used in turn (``--warm``: one copy). On a GPU calls
are recorded into a CUDA graph: launches from Python are not what is measured. ``limit`` is the time that the packed
bytes, or for decoding the packed and the dense bytes, take at the copy bandwidth that the same run measures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from peers import PEERS
from synthetic import FORMATS, packed_weight
from vqcompress import kernels
from vqcompress.layers import SharedCodebooks, VQLinear

SHAPES = {
    "sdxl": [
        (640, 640),
        (5120, 640),
        (640, 2560),
        (640, 2048),
        (1280, 1280),
        (10240, 1280),
        (1280, 5120),
        (1280, 2048),
    ],
    "dit": [(1152, 1152), (4608, 1152), (1152, 4608), (6912, 1152)],
    "pixart": [(1152, 1152), (4608, 1152), (1152, 4608), (1152, 4096)],
    "square": [(1280, 1280)],
}
CACHE_BYTES = {"cuda": 256 << 20, "cpu": 128 << 20}  # more than what any cache keeps of one layer's copies
Work = Callable[[], object]


@click.command(help=__doc__)
@click.option(
    "--shapes", default="square", show_default=True, help=f"Of {', '.join(SHAPES)}, comma-separated, or OUTxIN."
)
@click.option(
    "--samples", "--rows", "samples", default="1,16,1024", show_default=True, help="Samples of inputs, comma-separated."
)
@click.option("--formats", default=",".join(FORMATS), show_default=True, help="Ours, comma-separated.")
@click.option("--bits", default=3.0, show_default=True, help="Bits a weight of ours; halves for the trellis alone.")
@click.option("--dtype", default=None, help="float32 on a CPU, bfloat16 on a GPU unless given.")
@click.option("--warm", is_flag=True, help="One copy of each layer, which caches may hold.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the numbers here as well.")
def main(
    shapes: str, samples: str, formats: str, bits: float, dtype: str | None, warm: bool, json_path: str | None
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype or ("bfloat16" if device == "cuda" else "float32"))
    report = benchmark(
        parse_shapes(shapes), [int(n) for n in samples.split(",")], formats.split(","), bits, kind, device, warm
    )
    print(markdown(report))
    if json_path:
        Path(json_path).write_text(json.dumps(report, indent=1))


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """``"sdxl,64x32"`` -> shapes ``(out, in)``."""
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        found += SHAPES[part] if part in SHAPES else [tuple(int(n) for n in part.split("x"))]  # type: ignore[list-item]
    return found


@torch.no_grad()
def benchmark(
    shapes: list[tuple[int, int]],
    sample_counts: list[int],
    formats: list[str],
    bits: float,
    dtype: torch.dtype,
    device: str,
    warm: bool = False,
) -> dict[str, Any]:
    """Everything measured, as plain data."""
    bandwidth = copy_bandwidth(device)
    lines = []
    for shape in shapes:
        copies = 1 if warm else max(1, math.ceil(CACHE_BYTES[device] / (math.prod(shape) * dtype.itemsize)))
        candidates = {"dense": [dense_layer(shape, dtype, device) for _ in range(copies)]}
        for name in formats:
            candidates[name] = [packed_layer(name, shape, bits, device, seed) for seed in range(copies)]
            lines.append(decode_line(name, candidates[name], dtype, bandwidth))
        for name, make in PEERS.items():
            if (layer := make(shape, dtype, device)) is not None:
                candidates[name] = [layer] + [make(shape, dtype, device) for _ in range(copies - 1)]
        for count in sample_counts:
            x = torch.randn(count, shape[1], dtype=dtype, device=device)
            lines += product_lines(shape, x, candidates, bandwidth)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype),
        "copy_bytes_per_second": bandwidth,
        "warm": warm,
        "lines": lines,
    }


def dense_layer(shape: tuple[int, int], dtype: torch.dtype, device: str) -> nn.Linear:
    """A dense layer with contents."""
    return nn.Linear(shape[1], shape[0], bias=True, dtype=dtype, device=device)


def packed_layer(name: str, shape: tuple[int, int], bits: float, device: str, seed: int) -> VQLinear:
    """One of ours, of random codes."""
    weight = packed_weight(name, shape, bits, device, seed)
    shared = SharedCodebooks({"synthetic": weight.shared["codebooks"]}) if weight.shared else None
    with torch.device("meta"):
        skeleton = nn.Linear(shape[1], shape[0])
    skeleton.bias = nn.Parameter(torch.zeros(shape[0], device=device))
    return VQLinear(skeleton, weight.spec, weight.tensors, shared)


def product_lines(
    shape: tuple[int, int], x: Tensor, candidates: dict[str, list[nn.Module]], bandwidth: float
) -> list[dict[str, Any]]:
    """One line a candidate, the dense one first."""
    lines: list[dict[str, Any]] = []
    for name, layers in candidates.items():
        # A view is a tensor of its own: for the same one again our layers would return what they kept.
        taken = seconds([lambda layer=layer: layer(x.view_as(x)) for layer in layers], x.device.type)
        size = weight_bytes(layers[0])
        lines.append(
            {
                "what": "product",
                "shape": list(shape),
                "samples": len(x),
                "candidate": name,
                "kernel": served_by(layers[0], x),
                "bytes": size,
                "seconds": taken,
                "limit_seconds": size / bandwidth * 2,  # a copy reads and writes, a product only reads
                "ratio_to_dense": taken / (lines[0]["seconds"] if lines else taken),
            }
        )
    return lines


def decode_line(name: str, layers: list[VQLinear], dtype: torch.dtype, bandwidth: float) -> dict[str, Any]:
    """Decoding alone, against reading the packed and writing the dense bytes at copy bandwidth."""
    device = layers[0].weight.device.type
    taken = seconds([lambda layer=layer: layer.dense_weight(dtype) for layer in layers], device)
    dense = math.prod(layers[0].dense_shape) * dtype.itemsize
    moved = weight_bytes(layers[0]) + dense
    return {
        "what": "decode",
        "shape": list(layers[0].dense_shape),
        "candidate": name,
        "bytes": moved,
        "seconds": taken,
        "limit_seconds": moved / bandwidth,
        "share_of_copy_bandwidth": moved / taken / bandwidth,
    }


def weight_bytes(layer: nn.Module) -> int:
    """Bytes of a layer's weight and its quantization parameters, without the bias."""
    names = {name for name, _ in layer.named_parameters()} - {"bias"}
    return sum(layer.get_parameter(name).nbytes for name in names) + sum(b.nbytes for b in layer.buffers())


def served_by(layer: nn.Module, x: Tensor) -> str:
    """The kernel of ours, nothing for others."""
    if not isinstance(layer, VQLinear):
        return ""
    return kernels.kernel_choice(layer.spec, layer.dense_shape, len(x), x.device, x.dtype).name


def copy_bandwidth(device: str) -> float:
    """Bytes moved a second (read and written) by a large device copy."""
    source = torch.ones((256 << 20) if device == "cuda" else (32 << 20), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds([lambda: target.copy_(source)], device)


def seconds(work: list[Work], device: str) -> float:
    """Seconds a call: the best of a few rounds over all of ``work``."""
    for call in work:
        call()
    return (_graph_seconds if device == "cuda" else _clock_seconds)(work) / len(work)


def _clock_seconds(work: list[Work]) -> float:
    # With one thread its own CPU time, which other processes on the machine do not lengthen.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    # The best of each call by itself: a whole round is seldom left alone by whatever else runs.
    best, until = [math.inf] * len(work), time.perf_counter() + 1.0
    while time.perf_counter() < until or math.inf in best:
        for place, call in enumerate(work):
            start = clock()
            call()
            best[place] = min(best[place], clock() - start)
    return sum(best)


def _graph_seconds(work: list[Work]) -> float:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in work:
            call()
    best = math.inf
    for _ in range(20):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(5):
            graph.replay()
        stop.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(stop) / 5e3)
    return best


def device_name(device: str) -> str:
    """What the numbers were measured on."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def markdown(report: dict[str, Any]) -> str:
    """Two tables: decoding, then products."""
    state = "weights warm in cache" if report["warm"] else "weights from memory"
    lines = [
        f"{report['device']}, {report['dtype']}, {state}, copy {report['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        "",
        "| decode | shape | ms | of copy bandwidth |",
        "|---|---|---|---|",
    ]
    for line in (line for line in report["lines"] if line["what"] == "decode"):
        shape = "x".join(map(str, line["shape"]))
        share = f"{100 * line['share_of_copy_bandwidth']:.0f} %"
        lines.append(f"| {line['candidate']} | {shape} | {1e3 * line['seconds']:.3f} | {share} |")
    lines += [
        "",
        "| shape | samples | what | kernel | MB | ms | of dense | limit ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in (line for line in report["lines"] if line["what"] == "product"):
        cells = ["x".join(map(str, line["shape"])), line["samples"], line["candidate"], line["kernel"]]
        cells += [f"{line['bytes'] / 1e6:.2f}", f"{1e3 * line['seconds']:.3f}", f"{line['ratio_to_dense']:.2f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{1e3 * line['limit_seconds']:.3f}"])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
