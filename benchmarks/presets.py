"""What the presets of a whole job gain and cost: error, images and bytes of each, and its time against the default's.

``python benchmarks/presets.py`` quantizes an embedded model with each of ``vqcompress quantize --preset``, a process of
its own for each, and compares the folders in one report. Time is the processor time of the whole process, calibration
and fine-tuning included, as a ratio to the preset ``default`` of the same run. One short job goes before, so that
no preset pays for compiling.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from vqcompress.recipe_presets import RECIPE_PRESETS
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.formatting import percent_short, span
from vqcompress.reports.variant import Variant

AGAINST = "default"
WARMING = ("--count", "1", "--steps", "1", "--budget", "layer")
HEAD = (
    "preset", "bits a weight", "denoiser, MB", "its error", "PSNR, dB: median, 95 % interval", "worst image", "time",
)  # fmt: skip


@click.command(help=__doc__)
@click.option("--model", default="shapes-moe", show_default=True, help="Model to quantize.")
@click.option("--bits", default=3.0, show_default=True, help="Bits a weight.")
@click.option("--count", default=48, show_default=True, help="Images that the report compares.")
@click.option("-o", "--output", default="out/presets", show_default=True, type=click.Path(path_type=Path))
def main(model: str, bits: float, count: int, output: Path) -> None:
    processor_seconds("quantize", model, "-o", str(output / "warm"), "--overwrite", *WARMING)
    common = ("--bits", f"{bits:g}", "--overwrite")
    seconds = {
        preset: processor_seconds("quantize", model, "-o", str(output / preset), "--preset", preset, *common)
        for preset in RECIPE_PRESETS
    }
    folders = [str(output / preset) for preset in RECIPE_PRESETS]
    processor_seconds("report", model, *folders, "--count", str(count), "-o", str(output / "report"))
    comparison = Comparison.from_json(json.loads((output / "report" / "report.json").read_text(encoding="utf-8")))
    click.echo(presets_table(dict(zip(RECIPE_PRESETS, comparison.variants, strict=True)), seconds))


def processor_seconds(*arguments: str) -> float:
    """User and system seconds of a ``vqcompress`` process and its children. Raises `CalledProcessError` if it fails."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "vqcompress", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def presets_table(variants: Mapping[str, Variant], seconds: Mapping[str, float]) -> str:
    """One line a preset; ``seconds`` as ratios to those of `AGAINST`."""
    rows = [HEAD, *(_cells(preset, variant, seconds) for preset, variant in variants.items())]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]])


def _cells(preset: str, variant: Variant, seconds: Mapping[str, float]) -> tuple[str, ...]:
    median, psnr = variant.psnr_median, variant.image_values["psnr"]
    assert median is not None
    return (
        f"`{preset}`",
        f"{variant.bits_per_weight:.2f}",
        f"{variant.denoiser_bytes / 1e6:.2f}",
        percent_short(variant.denoiser_error),
        f"{median.value:.1f}, {span(median, 1)}",
        f"{min(psnr):.1f}",
        f"{seconds[preset] / seconds[AGAINST]:.2f} ×",
    )


if __name__ == "__main__":
    main()
