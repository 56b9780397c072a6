"""The README's table, from a stamped result: every format by size, the same bits in every layer.

``python benchmarks/result_tables.py`` prints it from ``docs/results/shapes-dit-peers.json``, which
``make evidence RESULT=shapes-dit-peers`` writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vqcompress.reports.comparison import Comparison
from vqcompress.reports.formatting import percent_short, span
from vqcompress.reports.variant import Variant

STAMPED = Path(__file__).parents[1] / "docs" / "results" / "shapes-dit-peers.json"
HEAD = ("format", "bits a weight", "denoiser, MB", "its error", "PSNR, dB: median, 95 % interval", "worst image")


def read(path: Path) -> Comparison:
    """The report inside of a stamped result."""
    return Comparison.from_json(json.loads(path.read_text(encoding="utf-8"))["report"])


def peers_table(comparison: Comparison) -> str:
    """One line a variant, the smallest first, vector codes in bold."""
    by_size = sorted(comparison.variants, key=lambda variant: variant.denoiser_bytes)
    rows = [HEAD, *(_cells(variant) for variant in by_size)]
    lines = ["|" + "|".join(row) + "|" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]])


def _cells(variant: Variant) -> tuple[str, ...]:
    ours = not variant.peer and variant.family == "vector"
    name = variant.label.removesuffix(" uniform")
    median, psnr = variant.psnr_median, variant.image_values["psnr"]
    assert median is not None
    return (
        f"**{name}**" if ours else name,
        f"{variant.bits_per_weight:.2f}",
        f"{variant.denoiser_bytes / 1e6:.2f}",
        percent_short(variant.denoiser_error),
        f"{median.value:.1f}, {span(median, 1)}",
        f"{min(psnr):.1f}",
    )


@click.command(help=__doc__)
@click.argument("path", default=STAMPED, type=click.Path(path_type=Path))
def main(path: Path) -> None:
    click.echo(peers_table(read(path)))


if __name__ == "__main__":
    main()
