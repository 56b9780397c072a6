"""The report's plots as SVG text that takes its colours and typeface from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from vqcompress.metrics import Estimate, overall
from vqcompress.reports.comparison import ORIGINAL, Comparison
from vqcompress.reports.formatting import significant
from vqcompress.reports.palette import FAINT, GRID, INK, STANDINS, STYLES
from vqcompress.reports.variant import LayerError, Variant

SMALL, WIDE, LOW = (5.4, 3.9), (11.2, 3.9), (11.2, 2.2)
MIN_LABEL_SHARE = 0.035  # a block narrower than this part of the axis gets no name


def error_by_bytes(comparison: Comparison) -> str:
    """Denoiser error by the denoiser's bytes on disk, a line for each method and bit allocation."""
    with _svg("error-by-bytes", SMALL) as (axes, text):
        _curves(axes, comparison, lambda variant: variant.denoiser_error)
        _intervals(axes, comparison, lambda variant: variant.error)
        _log_percent(axes)
        axes.set_ylabel("denoiser error")
        _bits_axis(axes, comparison)
    return text.getvalue()


def psnr_by_bytes(comparison: Comparison) -> str:
    """Median PSNR of the images, with intervals, by the denoiser's bytes on disk."""
    with _svg("psnr-by-bytes", SMALL) as (axes, text):
        _curves(axes, comparison, median_psnr)
        _intervals(axes, comparison, lambda variant: variant.psnr_median)
        axes.set_ylabel("median PSNR of images, dB, 95 % interval")
        _bits_axis(axes, comparison)
    return text.getvalue()


def median_psnr(variant: Variant) -> float:
    """In dB."""
    return variant.psnr_median.value if variant.psnr_median else variant.image_metrics["psnr_median"]


def error_by_timestep(comparison: Comparison) -> str:
    """Denoiser error along the trajectory, noise on the left, for the variants that `peers` picks."""
    with _svg("error-by-timestep", SMALL) as (axes, text):
        for variant in peers(comparison):
            axes.plot(
                *zip(*variant.error_by_timestep.items(), strict=True), label=variant.label, **_line(variant, size=4)
            )
        times = list(comparison.variants[0].error_by_timestep)
        if times[0] > times[-1]:
            axes.invert_xaxis()
        _log_percent(axes)
        axes.set_xlabel("timestep (noise on the left, image on the right)")
        axes.set_ylabel("denoiser error")
        _legend(axes)
    return text.getvalue()


def latents_by_timestep(comparison: Comparison) -> str:
    """How far each variant's own guided trajectory strays from the original's, for the variants that `peers` picks."""
    with _svg("latents-by-timestep", SMALL) as (axes, text):
        for variant in peers(comparison):
            points = [(t, error) for t, error in variant.trajectory.by_timestep.items() if error > 0]
            if points:
                axes.plot(*zip(*points, strict=True), label=variant.label, **_line(variant, size=4))
        times = list(comparison.variants[0].error_by_timestep)
        if times and times[0] > times[-1]:
            axes.invert_xaxis()
        _log_percent(axes)
        axes.set_xlabel("timestep (noise on the left, image on the right)")
        axes.set_ylabel("latents' error, own trajectory")
        _legend(axes)
    return text.getvalue()


def caption_accuracy(comparison: Comparison) -> str:
    """Each variant's caption accuracy with its interval, and the original's as a band."""
    variants = comparison.variants
    with _svg("caption-accuracy", (SMALL[0], 1.1 + 0.31 * len(variants))) as (axes, text):
        _original_band(axes, comparison)
        for place, variant in enumerate(variants):
            share = overall(variant.caption_accuracy)
            if share is not None:
                color = STYLES[variant.curve].color
                axes.plot([100 * share.low, 100 * share.high], [place, place], color=color, linewidth=1.6)
                axes.plot([100 * share.share], [place], **{**_line(variant, size=6), "linestyle": "none"})
        axes.set_yticks(range(len(variants)), [variant.label for variant in variants])
        axes.set_ylim(len(variants) - 0.4, -0.6)
        axes.set_xlabel("caption accuracy, % with 95 % interval")
        axes.grid(False, axis="y")
    return text.getvalue()


def error_by_layer(comparison: Comparison) -> str:
    """Relative output error of every layer in execution order, for the variants that `peers` picks."""
    with _svg("error-by-layer", WIDE) as (axes, text):
        _by_layer(axes, comparison, lambda each: each.error)
        _log_percent(axes)
        axes.set_ylabel("relative output error")
    return text.getvalue()


def bits_by_layer(comparison: Comparison) -> str:
    """Bits a weight of every layer in execution order, for the variants that `peers` picks."""
    with _svg("bits-by-layer", LOW) as (axes, text):
        _by_layer(axes, comparison, lambda each: each.bits)
        axes.set_ylabel("bits a weight")
    return text.getvalue()


def gap_by_layer(comparison: Comparison) -> str:
    """Bits a weight above the rate-distortion bound, where calibration recorded them."""
    with _svg("gap-by-layer", LOW) as (axes, text):
        _by_layer(axes, comparison, lambda each: math.nan if each.gap is None else each.gap)
        axes.set_ylabel("bits above the Gaussian bound")
    return text.getvalue()


def _by_layer(axes: Axes, comparison: Comparison, value: Callable[[LayerError], float]) -> None:
    names = [each.layer for each in comparison.variants[0].layer_errors]
    place = {name: index for index, name in enumerate(names)}
    for variant in peers(comparison):
        points = [(place[each.layer], value(each)) for each in variant.layer_errors if each.layer in place]
        known = [point for point in points if math.isfinite(point[1])]
        if known:
            edge = 1 if STYLES[variant.curve].dashed else 0
            style = {**_line(variant, size=4), "linestyle": "none", "markeredgewidth": edge}
            axes.plot(*zip(*known, strict=True), label=variant.label, **style)
    _block_axis(axes, names)
    _legend(axes, columns=6)


def peers(comparison: Comparison) -> list[Variant]:
    """The first variant and, of every other curve, the variant nearest to it in bytes."""
    lead = comparison.variants[0]

    def distance(variant: Variant) -> float:
        return abs(math.log(variant.denoiser_bytes / lead.denoiser_bytes))

    nearest = {lead.curve: lead}
    for variant in sorted(comparison.variants, key=distance):
        nearest.setdefault(variant.curve, variant)
    return list(nearest.values())


def _curves(axes: Axes, comparison: Comparison, value: Callable[[Variant], float]) -> None:
    ordered = sorted(comparison.variants, key=lambda variant: list(STYLES).index(variant.curve))
    for curve, variants in groupby(ordered, key=lambda variant: variant.curve):
        points = sorted(
            (variant.denoiser_bytes / 1e6, value(variant), variant)
            for variant in variants
            if math.isfinite(value(variant))
        )
        if points:
            axes.plot([p[0] for p in points], [p[1] for p in points], label=curve, **_line(points[0][2], size=6))
    _legend(axes, above=1.19)


def _intervals(axes: Axes, comparison: Comparison, of: Callable[[Variant], Estimate | None]) -> None:
    for variant in comparison.variants:
        if (found := of(variant)) and math.isfinite(found.low + found.high):
            place = variant.denoiser_bytes / 1e6
            axes.plot([place, place], [found.low, found.high], color=STYLES[variant.curve].color, linewidth=1)


def _bits_axis(axes: Axes, comparison: Comparison) -> None:
    """Bytes below; above, the same in bits over all weights of the denoiser."""
    axes.set_xlabel(f"{comparison.denoiser} on disk, MB")
    bits = 8e6 / comparison.original.denoiser_weights
    axes.xaxis.set_major_locator(MaxNLocator(6))
    above = axes.secondary_xaxis("top", functions=(lambda mb: np.asarray(mb) * bits, lambda b: np.asarray(b) / bits))
    above.xaxis.set_major_locator(MaxNLocator(6))
    above.set_xlabel("bits per weight, whole file")
    above.spines["top"].set_visible(False)


def _original_band(axes: Axes, comparison: Comparison) -> None:
    share = overall(comparison.original.caption_accuracy)
    if share is not None:
        axes.axvspan(100 * share.low, 100 * share.high, color=GRID, linewidth=0)
        axes.axvline(100 * share.share, color=FAINT, linewidth=1)
        axes.annotate(
            ORIGINAL,
            (100 * share.share, 1),
            (0, 4),
            ("data", "axes fraction"),
            "offset points",
            ha="center",
            color=FAINT,
        )


def _block_axis(axes: Axes, names: list[str]) -> None:
    start = 0
    ticks, labels = [], []
    for block, members in groupby(names, key=block_of):
        count = len(list(members))
        if start:
            axes.axvline(start - 0.5, color=GRID, linewidth=1)
        if count >= MIN_LABEL_SHARE * len(names):
            ticks.append(start + (count - 1) / 2)
            labels.append(block)
        start += count
    axes.set_xticks(ticks, labels)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.5, max(len(names) - 0.5, 0.5))


def block_of(layer: str) -> str:
    """``down_blocks.1.attentions.0.proj_in`` -> ``down 1``; layers outside any block -> their own first name."""
    numbered = re.match(r"(?P<name>\w+?)_blocks\.(?P<index>\d+)", layer)
    if numbered:
        return f"{numbered['name'].replace('_', ' ')} {numbered['index']}"
    return layer.split(".")[0].removesuffix("_block").replace("_", " ")


def _log_percent(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0,) if high / low > 1e3 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{significant(100 * share, 1)} %"))


def _line(variant: Variant, *, size: float) -> dict:
    style = STYLES[variant.curve]
    return {
        "color": style.color,
        "marker": style.marker,
        "markersize": size,
        "markerfacecolor": "none" if style.dashed else style.color,
        "markeredgewidth": 1.4 if style.dashed else 0,
        "linewidth": 1.6,
        "linestyle": (0, (4, 2)) if style.dashed else "-",
    }


def _legend(axes: Axes, *, columns: int = 3, above: float = 1.02) -> None:
    axes.legend(
        *(axes.get_legend_handles_labels()),
        loc="lower left",
        bbox_to_anchor=(-0.02, above),
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        columnspacing=1.4,
        handlelength=2.2,
        borderaxespad=0,
    )


@contextmanager
def _svg(name: str, inches: tuple[float, float]) -> Iterator[tuple[Axes, io.StringIO]]:
    """Axes to draw on; on leaving, their SVG is in the text that came with them."""
    text = io.StringIO()
    with rc_context({**RC, "svg.hashsalt": name}):
        figure = Figure(figsize=inches)
        axes = figure.subplots()
        yield axes, text
        raw = io.StringIO()
        figure.savefig(raw, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata=NO_METADATA)
    text.write(_for_page(raw.getvalue(), name))


NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
RC: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def _for_page(svg: str, name: str) -> str:
    """Make matplotlib's file a part of an HTML page: no prolog, no links, the page's colours and typeface, own ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", svg)
    for standin, variable in [*STANDINS.items(), *_method_colors()]:
        svg = svg.replace(standin, variable)
    return svg.strip()


def _method_colors() -> list[tuple[str, str]]:
    return [(style.color, f"var(--{method})") for method, style in STYLES.items()]
