"""Estimate how long quantization takes on 1, 8 and 64 machines with an accelerator, from speeds measured here.

``python benchmarks/scaling_model.py`` measures three speeds on one core of this machine: the trellis search (weights a
second), float32 products, and the float64 factorization of second moments. The cost of a layer follows from its shape,
and layers are shared among processes as `vqcompress.quantize` does under `torchrun`. What an accelerator does to
products, factorization and calibration is NOT measured: those columns follow from the assumed speeds that the options
name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import nn

from encode_speed import coding_speed, products_per_second, seconds, states_of
from vqcompress.architectures.layer_plan import plan_layers
from vqcompress.architectures.published_skeleton import published_skeleton
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantizers.inverse_factor import inverse_upper_factor
from vqcompress.recipe_presets import RECIPE_PRESETS
from vqcompress.working_memory import balanced

PROCESSES = (1, 8, 64)
# Of a calibration run: steps, guidance halves, tokens that most weights see in a call, share of the weights that one
# token meets.
CALLS = {"sdxl": (50, 2, 1024, 1.0), "flux": (28, 1, 4608, 1.0), "dit-moe-g-16e2a": (50, 2, 256, 0.2)}
REPEATS = 7  # of each measurement; the fastest counts, for other programs only slow it down
RATE = 3
FACTORED = 3072  # columns of the moment that is factored to measure the speed


@dataclass(frozen=True)
class Speeds:
    """Of one core, and of a process's assumed accelerator: ``search`` in weights a second, the rest in operations."""

    search: float
    products: float
    factoring: float
    device_products: float
    device_factoring: float
    device_forward: float
    cores: int


@dataclass(frozen=True)
class Calibration:
    """``prompts`` in batches of ``batch``, of whose calls at most ``rows`` rows are multiplied."""

    prompts: int
    batch: int
    rows: int


@click.command(help=__doc__)
@click.option("--preset", type=click.Choice(sorted(RECIPE_PRESETS)), default="fast", show_default=True)
@click.option("--models", default=",".join(CALLS), show_default=True)
@click.option("--cores", default=16, show_default=True, help="Host cores of each process, which search.")
@click.option("--device-products", default=30e12, show_default=True, help="Assumed float32 operations a second.")
@click.option("--device-factoring", default=10e12, show_default=True, help="Assumed float64 operations a second.")
@click.option("--device-forward", default=3e14, show_default=True, help="Assumed 16-bit operations a second.")
@click.option("--prompts", default=256, show_default=True, help="Calibration prompts.")
@click.option("--batch", default=8, show_default=True, help="Prompts in a batch.")
@click.option(
    "--rows", default=8192, show_default=True, help="Samples multiplied of each call, `calibration.rows_per_call`."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def main(
    preset: str, models: str, cores: int, prompts: int, batch: int, rows: int, json_path: Path | None, **device: float
) -> None:
    torch.set_num_threads(1)
    state_bits = states_of(preset, RATE)
    speeds = Speeds(
        max(coding_speed(1280, state_bits, RATE, 16) for _ in range(REPEATS)),
        max(products_per_second() for _ in range(REPEATS)),
        max(factorings_per_second() for _ in range(REPEATS)),
        **device,
        cores=cores,
    )
    calibration = Calibration(prompts, batch, rows)
    found = {name: estimate(name, layers_of(name), speeds, calibration) for name in models.split(",")}
    click.echo(markdown(found, speeds, preset))
    if json_path:
        json_path.write_text(json.dumps({"speeds": asdict(speeds), "models": found}, indent=1) + "\n")


def layers_of(name: str) -> list[tuple[int, int]]:
    """(outputs, columns) of every quantized layer, on the meta device; ``flux`` is diffusers' 12 B transformer."""
    if name == "flux":
        plans = plan_layers(_flux(), {})
    else:
        found = published_skeleton(name)
        plans = found.architecture.layers(found.pipeline, found.architecture.denoiser)
    return [matrix_shape(plan.shape) for plan in plans if plan.reason is None]


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


def estimate(name: str, layers: list[tuple[int, int]], speeds: Speeds, calibration: Calibration) -> dict[str, object]:
    """Hours of one core, and seconds of 1, 8 and 64 processes."""
    weights = sum(outputs * columns for outputs, columns in layers)
    searches = [outputs * columns / speeds.search for outputs, columns in layers]
    # A sweep multiplies half of a square with the errors; each fit of scales and measured error a whole one.
    products = [7 * outputs * columns**2 for outputs, columns in layers]
    factorings = [2 / 3 * columns**3 for _, columns in layers]
    core = [
        search + product / speeds.products + factoring / speeds.factoring
        for search, product, factoring in zip(searches, products, factorings, strict=True)
    ]
    device = [
        max(search / speeds.cores, product / speeds.device_products + factoring / speeds.device_factoring)
        for search, product, factoring in zip(searches, products, factorings, strict=True)
    ]
    return {
        "layers": len(layers),
        "weights": weights,
        "core_hours": sum(core) / 3600,
        "largest_layer_core_seconds": max(core),
        "cores_until_flat": sum(core) / max(core),
        "moment_bytes": sum(4 * columns**2 for _, columns in layers),
        "encode_seconds": {n: slowest(device, n) for n in PROCESSES},
        "calibrate_seconds": {n: calibrating(name, layers, speeds, calibration, n) for n in PROCESSES},
    }


def calibrating(
    name: str, layers: list[tuple[int, int]], speeds: Speeds, calibration: Calibration, processes: int
) -> float:
    """Seconds of the rounds of batches: forward passes, and half a square of products for the moment of each layer."""
    steps, halves, tokens, share = CALLS[name]
    seen = calibration.batch * halves * tokens * share
    forward = 2 * seen * sum(outputs * columns for outputs, columns in layers) / speeds.device_forward
    moments = min(seen, calibration.rows) * sum(columns**2 for _, columns in layers) / speeds.device_products
    rounds = -(-calibration.prompts // (calibration.batch * processes))
    return rounds * steps * (forward + moments)


def slowest(costs: list[float], processes: int) -> float:
    """Seconds of the process that has most to do."""
    shares = balanced(costs, processes)
    return max(sum(cost for cost, share in zip(costs, shares, strict=True) if share == n) for n in range(processes))


def factorings_per_second() -> float:
    """Float64 operations a second of the block-wise factorization."""
    x = torch.randn(600, FACTORED, generator=torch.Generator().manual_seed(0))
    moment = x.t() @ x / len(x)
    taken = seconds(lambda: inverse_upper_factor(moment, torch.arange(FACTORED), 1.0, largest_whole=0))
    return 2 / 3 * FACTORED**3 / taken


def markdown(found: Mapping[str, Mapping[str, object]], speeds: Speeds, preset: str) -> str:
    """Both tables."""
    return "\n".join([*_measured(found, speeds, preset), "", *_assumed(found, speeds)])


def _measured(found: Mapping[str, Mapping[str, object]], speeds: Speeds, preset: str) -> Iterator[str]:
    yield (
        f"Measured, one core, {preset}: search {speeds.search / 1e6:.2f} M weights a second, products "
        f"{speeds.products / 1e9:.0f} and factorization {speeds.factoring / 1e9:.0f} billion operations a second.\n"
    )
    yield (
        "| model | layers | weights | core hours | largest layer, core s | cores until it stops scaling | "
        "moments, one a layer |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, row in found.items():
        yield (
            f"| {name} | {row['layers']} | {row['weights'] / 1e9:.2f} B | {row['core_hours']:.2f} | "  # type: ignore[operator]
            f"{row['largest_layer_core_seconds']:.0f} | {row['cores_until_flat']:.0f} | "
            f"{row['moment_bytes'] / 1e9:.0f} GB |"  # type: ignore[operator]
        )


def _assumed(found: Mapping[str, Mapping[str, object]], speeds: Speeds) -> Iterator[str]:
    yield (
        f"Assumed, not measured: {speeds.cores} host cores a process that search as this one, an accelerator with "
        f"{speeds.device_products:.0e} float32, {speeds.device_factoring:.0e} float64 and "
        f"{speeds.device_forward:.0e} 16-bit operations a second.\n"
    )
    yield (
        "| model | "
        + " | ".join(f"calibrate, {n}" for n in PROCESSES)
        + " | "
        + " | ".join(f"encode, {n}" for n in PROCESSES)
        + " |"
    )
    yield "|---" * (1 + 2 * len(PROCESSES)) + "|"
    for name, row in found.items():
        cells = [row[stage][n] for stage in ("calibrate_seconds", "encode_seconds") for n in PROCESSES]  # type: ignore[index]
        yield f"| {name} | " + " | ".join(f"{value:.0f} s" for value in cells) + " |"


if __name__ == "__main__":
    main()
