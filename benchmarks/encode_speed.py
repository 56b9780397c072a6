"""How fast the trellis quantizer encodes, per layer shape of Stable Diffusion XL's UNet, and what the whole model
takes.

``python benchmarks/encode_speed.py`` times the parts of one layer on one CPU thread and adds them up for all 792
layers: coding (a sample of columns of every shape, exact in what is left out: columns are coded one by one), the matrix
products of feedback, and the factorization of the second moment (measured up to ``--largest`` columns, then scaled
with the cube). Recording the second moments is not part of it, and neither are columns coded a second time, to choose a
source model or to mend one that misses its promise.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import torch

from vqcompress.formats.trellis_table import value_table
from vqcompress.matrix_view import is_quantizable, matrix_shape
from vqcompress.models.presets import PRESETS
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.quantizers.trellis import usual_state_bits
from vqcompress.recipe_presets import RECIPE_PRESETS, preset_values
from vqcompress.search.viterbi import CpuViterbi


@click.command(help=__doc__)
@click.option("--only", default=",".join(RECIPE_PRESETS), show_default=True, help="Presets to time, comma-separated.")
@click.option("--rate", default=3, show_default=True, help="Bits a weight.")
@click.option("--columns", default=8, show_default=True, help="Columns coded of each shape.")
@click.option(
    "--largest", default=2560, show_default=True, help="Largest second moment factored; larger ones are scaled."
)
@click.option("--cores", default=2, show_default=True, help="Layers are encoded side by side on this many.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the numbers here as well.")
def main(only: str, rate: int, columns: int, largest: int, cores: int, json_path: str | None) -> None:
    torch.set_num_threads(1)
    shapes = sdxl_shapes()
    flops = products_per_second()
    factoring = {width: factoring_seconds(width, largest) for width in {columns_ for _, columns_ in shapes}}
    report = {}
    for name in only.split(","):
        state_bits = states_of(name, rate)
        lengths = sorted({outputs for outputs, _ in shapes})
        speed = {outputs: coding_speed(outputs, state_bits, rate, columns) for outputs in lengths}
        report[name] = [layer_seconds(shape, speed, flops, factoring) | {"count": n} for shape, n in shapes.items()]
        click.echo(f"\n### {name}: {state_bits}-bit states, {rate} bits\n")
        click.echo(markdown(report[name], cores))
    if json_path:
        Path(json_path).write_text(json.dumps(report, indent=1))


def states_of(preset: str, rate: int) -> int:
    """State bits of trellis codes in a preset's runs at ``rate`` bits a weight."""
    states = preset_values(preset, "trellis")["settings"]["state_bits"]
    return usual_state_bits(rate) if states == "auto" else int(states)


def sdxl_shapes() -> Counter[tuple[int, int]]:
    """``(outputs, columns) -> layers`` of the UNet, all Linear and Conv2d but conv_in and conv_out; no weights are
    made."""
    unet = PRESETS["sdxl"].build("meta")
    layers = [layer for name, layer in unet.named_modules() if is_quantizable(layer) and not name.startswith("conv_")]
    return Counter(matrix_shape(layer.weight.shape) for layer in layers)


def coding_speed(outputs: int, state_bits: int, rate: int, columns: int) -> float:
    """Weights a second of the search itself, for columns of ``outputs`` weights."""
    generator = torch.Generator().manual_seed(0)
    search = CpuViterbi(outputs, state_bits, {rate: value_table(state_bits, rate, 0.0)})
    targets, scale = torch.randn(columns, outputs, generator=generator), torch.ones(outputs)
    search(targets[0], scale, rate)
    return columns * outputs / seconds(lambda: [search(target, scale, rate) for target in targets])


def layer_seconds(
    shape: tuple[int, int], speed: dict[int, float], flops: float, factoring: dict[int, float]
) -> dict[str, float]:
    """CPU seconds of one layer, part by part."""
    outputs, columns = shape
    coding = outputs * columns / speed[outputs]
    # A sweep multiplies half of a square with the errors, the fit of scales a whole one.
    products = 3 * outputs * columns**2 / flops
    return {
        "outputs": outputs,
        "columns": columns,
        "weights per second": outputs * columns / (coding + products + factoring[columns]),
        "coding": coding,
        "products": products,
        "factoring": factoring[columns],
    }


def factoring_seconds(columns: int, largest: int) -> float:
    """Seconds to factor a second moment of this many columns."""
    measured = min(columns, largest)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(measured + 64, measured, generator=generator)
    moment = SecondMoment(inputs.t() @ inputs / len(inputs))
    return seconds(lambda: prepare_feedback(moment)) * (columns / measured) ** 3


def products_per_second() -> float:
    """Floating-point operations a second of a float32 matrix product of the blocks' shape."""
    left, right = torch.ones(2048, 128), torch.ones(128, 1280)
    return 2 * 2048 * 128 * 1280 * 8 / seconds(lambda: [left @ right for _ in range(8)])


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def markdown(layers: list[dict[str, float]], cores: int) -> str:
    """A row per shape and the sum over the model."""
    lines = ["| shape | layers | weights a second | coding s | products s | factoring s |", "|---|---|---|---|---|---|"]
    for layer in sorted(layers, key=lambda x: -x["outputs"] * x["columns"]):
        parts = " | ".join(f"{layer[part]:.2f}" for part in ("coding", "products", "factoring"))
        speed = f"{layer['weights per second'] / 1e6:.2f} M"
        lines.append(f"| {layer['outputs']:.0f} x {layer['columns']:.0f} | {layer['count']} | {speed} | {parts} |")
    total = sum(layer["count"] * (layer["coding"] + layer["products"] + layer["factoring"]) for layer in layers)
    weights = sum(layer["count"] * layer["outputs"] * layer["columns"] for layer in layers)
    count = sum(layer["count"] for layer in layers)
    lines.append(
        f"\n{count} layers, {weights / 1e9:.2f} G weights: {total / 3600:.2f} CPU hours, "
        f"{total / 3600 / cores:.2f} h on {cores} cores"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
