"""`python docs/draw_pictures.py`: draw the documentation's pictures into `docs/pictures`.

Each picture carries the numbers that it shows as JSON in its description; `tests/docs/test_pictures.py` computes them
again. It takes about a minute of one core.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from vqcompress import quantize_weight
from vqcompress.formats.rotation import rotate
from vqcompress.formats.trellis_table import value_table
from vqcompress.moments.rate_distortion import water_level

DOCS = Path(__file__).parent
FOLDER = DOCS / "pictures"
PEERS = DOCS / "results" / "shapes-dit-peers.json"
OURS, OTHERS, BOUND = "#b3261e", "#5f6b7a", "#1f2328"
COLORS = {"rtn": "#8c959f", "gptq": "#5f6b7a", "kmeans": "#4a7fb5", "additive": "#2f8f6b", "trellis": OURS}
STATES, RATE, WIDTH, CORRELATION = 8, 2, 192, 0.9


def peers() -> dict[str, Any]:
    """Megabytes and relative error of every format in the stamped result."""
    variants = json.loads(PEERS.read_text(encoding="utf-8"))["report"]["variants"]
    return {
        each["label"].removesuffix(" uniform"): [round(each["denoiser_bytes"] / 1e6, 3), each["denoiser_error"]]
        for each in variants
    }


BESIDE = {
    "llmcompressor-gptq-2": (7, -10, "left"),
    "llmcompressor-gptq-3": (-4, 8, "center"),
    "gptq 3-bit": (7, -9, "left"),
    "gguf-q3_k": (-7, -4, "right"),
    "torchao-int4": (-24, -18, "center"),
    "sdnq-uint4": (7, -5, "left"),
}
"""Where a name stands beside its point, in points, where it would cover another."""


def draw_peers(data: dict[str, Any], figure: Figure) -> None:
    axes = figure.subplots()
    for name, (size, error) in data.items():
        ours = name.startswith("trellis")
        axes.plot(size, 100 * error, "o", color=OURS if ours else OTHERS, markersize=8 if ours else 6)
        across, up, side = BESIDE.get(name, (7, 3, "left"))
        axes.annotate(
            name, (size, 100 * error), xytext=(across, up), textcoords="offset points", ha=side,
            color=OURS if ours else BOUND, weight="bold" if ours else "normal", fontsize=9,
        )  # fmt: skip
    axes.set(
        xlabel="denoiser on disk, MB", ylabel="error of its output, %", yscale="log", xlim=(1.4, 3.3), ylim=(0.018, 12)
    )
    ours = [(size, 100 * error) for name, (size, error) in data.items() if name.startswith("trellis")]
    axes.plot(*zip(*sorted(ours), strict=True), color=OURS, linewidth=1, zorder=1)
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def distortion() -> dict[str, Any]:
    """Bits and relative output error of each method on Gaussian weights, with white and with correlated inputs."""
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    distance = (torch.arange(WIDTH)[:, None] - torch.arange(WIDTH)[None]).abs()
    moments = {"white inputs": torch.eye(WIDTH), "correlated inputs": CORRELATION**distance}
    return {name: _curves(weight, moment.float()) for name, moment in moments.items()}


def _curves(weight: torch.Tensor, moment: torch.Tensor) -> dict[str, list[list[float]]]:
    curves: dict[str, list[list[float]]] = {method: [] for method in COLORS}
    for method, bits in ((method, bits) for method in COLORS for bits in (2, 3, 4)):
        packed = quantize_weight(weight, moment, method=method, bits=bits)
        error = weight - packed.decode()
        relative = torch.trace(error @ moment @ error.T) / torch.trace(weight @ moment @ weight.T)
        curves[method].append([round(packed.bits_per_weight, 3), float(relative)])
    costs = torch.linalg.eigvalsh(moment.double()).clamp_min(0)
    curves["bound"] = [[bits, _bound(costs, bits)] for bits in (2, 2.5, 3, 3.5, 4, 4.4)]
    return curves


def _bound(costs: torch.Tensor, bits: float) -> float:
    return float(costs.clamp_max(water_level(costs, bits)).sum() / costs.sum())


def draw_distortion(data: dict[str, Any], figure: Figure) -> None:
    for axes, (name, curves) in zip(figure.subplots(1, 2, sharey=True), data.items(), strict=True):
        for method, points in curves.items():
            style = (
                {"color": BOUND, "linestyle": "--"} if method == "bound" else {"color": COLORS[method], "marker": "o"}
            )
            axes.plot(*zip(*points, strict=True), label=method, **style)
        axes.set(title=name, xlabel="bits a weight, all stored", yscale="log")
    figure.axes[0].set_ylabel("relative error of the output")
    figure.axes[1].legend(frameon=False)


def water() -> dict[str, Any]:
    """Costs of 24 columns, the water level at 3 bits, and the rates that follow."""
    costs = torch.exp2(torch.linspace(6, -7, 24).double() + 1.5 * torch.sin(torch.arange(24).double()))
    costs = costs.sort(descending=True).values
    level = water_level(costs, 3.0)
    return {"costs": costs.tolist(), "level": level, "rates": (costs / level).log2().div(2).clamp_min(0).tolist()}


def draw_water(data: dict[str, Any], figure: Figure) -> None:
    costs, level = np.array(data["costs"]), data["level"]
    floor, places = 2.0**-10, np.arange(len(costs))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    axes.bar(
        places,
        costs - np.minimum(costs, level),
        bottom=np.minimum(costs, level),
        color="#d7dbe0",
        label="removed by bits",
    )
    axes.bar(places, np.minimum(costs, level) - floor, bottom=floor, color="#4a7fb5", label="error that is left")
    axes.axhline(level, color=BOUND, linestyle="--", linewidth=1)
    axes.annotate("θ", (len(costs) - 0.3, level), xytext=(6, 4), textcoords="offset points")
    axes.set(yscale="log", ylabel="cost of a column", ylim=(floor, costs.max() * 2))
    axes.legend(frameon=False, loc="upper right")
    below.bar(places, data["rates"], color=OURS)
    below.set(xlabel="columns, the costliest first", ylabel="bits a weight")


def trellis() -> dict[str, Any]:
    """Values of neighbouring weights in a trellis of ``2**STATES`` states at ``RATE`` bits, for every transition."""
    values = value_table(STATES, RATE, 0.0).double().numpy()
    states = np.arange(1 << STATES)
    following = ((states[:, None] << RATE) & ((1 << STATES) - 1)) | np.arange(1 << RATE)
    pairs = np.stack([np.repeat(values, 1 << RATE), values[following.ravel()]], 1)
    grid = np.sort(_scalar_levels(1 << RATE))
    return {"pairs": np.round(pairs, 4).tolist(), "scalar": np.round(grid, 4).tolist()}


def _scalar_levels(count: int) -> np.ndarray:
    """Lloyd and Max's levels for a Gaussian."""
    source = np.random.default_rng(0).standard_normal(1 << 16)
    levels = np.quantile(source, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(source[:, None] - levels).argmin(1)
        levels = np.array([source[nearest == each].mean() for each in range(count)])
    return levels


def draw_trellis(data: dict[str, Any], figure: Figure) -> None:
    scalar, coded = figure.subplots(1, 2, sharex=True, sharey=True)
    levels = np.array(data["scalar"])
    scalar.plot(*np.meshgrid(levels, levels), "o", color=OTHERS, markersize=4)
    coded.plot(*np.array(data["pairs"]).T, "o", color=OURS, markersize=1.8)
    scalar.set(title=f"scalar code, {RATE} bits: {len(levels) ** 2} pairs", xlabel="a weight", ylabel="the next weight")
    coded.set(title=f"trellis, {RATE} bits, {1 << STATES} states: {len(data['pairs'])} pairs", xlabel="a weight")
    for axes in (scalar, coded):
        axes.set_aspect("equal")


def rotation() -> dict[str, Any]:
    """Counts of weights by size before and after the signed Hadamard transform of 256 outputs."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(256, 256, generator=generator)
    tails = normal / torch.randn(4, 256, 256, generator=generator).square().mean(0).sqrt()  # Student's t, 4 degrees
    tails = tails / tails.square().mean().sqrt()
    edges = torch.linspace(-8, 8, 65)
    turned = rotate(tails, 256)
    return {name: _shares(each, edges) for name, each in (("weights", tails), ("rotated", turned))}


def _shares(values: torch.Tensor, edges: torch.Tensor) -> list[float]:
    counts = torch.histc(
        values.clamp(float(edges[0]), float(edges[-1])), len(edges) - 1, float(edges[0]), float(edges[-1])
    )
    return [round(float(count) / values.numel(), 6) for count in counts]


def draw_rotation(data: dict[str, Any], figure: Figure) -> None:
    axes, places = figure.subplots(), np.linspace(-8, 8, 65)
    for name, color in (("weights", OTHERS), ("rotated", OURS)):
        axes.stairs(data[name], places, color=color, label=name, linewidth=1.6)
    middle = (places[1:] + places[:-1]) / 2
    axes.plot(middle, 0.25 * np.exp(-(middle**2) / 2) / math.sqrt(2 * math.pi), "--", color=BOUND, label="Gaussian")
    axes.set(yscale="log", ylim=(1e-5, 0.3), xlabel="standard deviations", ylabel="share of weights")
    axes.legend(frameon=False)


PICTURES: dict[
    str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any], Figure], None], tuple[float, float]]
] = {
    "peers": (peers, draw_peers, (7.6, 4.2)),
    "distortion": (distortion, draw_distortion, (8.4, 3.8)),
    "water": (water, draw_water, (7.6, 4.2)),
    "trellis": (trellis, draw_trellis, (7.6, 4.4)),
    "rotation": (rotation, draw_rotation, (7.6, 3.4)),
}
"""Name -> numbers, drawing, size in inches."""


def draw(name: str, folder: Path = FOLDER) -> Path:
    """Draw one picture with its numbers in the description, the same bytes for the same numbers."""
    compute, put, size = PICTURES[name]
    data, path = compute(), folder / f"{name}.svg"
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False,
                         "axes.spines.right": False, "font.family": "sans-serif"}):  # fmt: skip
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        put(data, figure)
        figure.savefig(path, metadata={"Date": None, "Description": json.dumps(data)})
    return path


if __name__ == "__main__":
    for each in PICTURES:
        draw(each)
