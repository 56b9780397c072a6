"""The README's tables of `shapes`, from the reports that `make demo` and `make results` write.

``python benchmarks/result_tables.py out/report/report.json out/results/shapes/report/report.json``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vqcompress.report.comparison import Comparison
from vqcompress.report.formatting import percent_short
from vqcompress.report.variant import Variant

METHODS, WIDTHS = ("trellis", "additive", "gptq", "rtn"), (2, 3, 4)


def demo_table(comparison: Comparison) -> str:
    """One line a variant, the first in bold."""
    head = ("variant", "bits per quantized weight, all counted", "denoiser on disk", "denoiser error")
    lines = [_line(*head, "PSNR to the original's images", "SSIM"), _rule(6)]
    for at, variant in enumerate(comparison.variants):
        label = variant.label if at else f"**{variant.label}**"
        error, psnr = percent_short(variant.denoiser_error), f"{variant.psnr:.1f} dB"
        lines.append(_line(label, f"{variant.bits_per_weight:.2f}", _size(variant), error, psnr, f"{variant.ssim:.3f}"))
    return "\n".join(lines)


def budget_table(comparison: Comparison, mixed: bool) -> str:
    """Method by width, either with bits allocated over the model or with the same bits for every layer."""
    found = {
        (variant.method, _width(variant)): variant for variant in comparison.variants if variant.allocated == mixed
    }
    lines = [_line("", *(f"{width} bits" for width in WIDTHS)), _rule(len(WIDTHS) + 1)]
    for method in METHODS:
        if any((method, width) in found for width in WIDTHS):
            lines.append(_line(f"`{method}`", *(_cell(found.get((method, width))) for width in WIDTHS)))
    return "\n".join(lines)


def _width(variant: Variant) -> int:
    scales = 0.3 if variant.family == "scalar" else 0.0  # those of groups of 64 take .28 to .31
    return round(variant.bits_per_weight - scales)


def _cell(variant: Variant | None) -> str:
    return f"{_size(variant)} · {percent_short(variant.denoiser_error)} · {variant.psnr:.1f} dB" if variant else "–"


def _size(variant: Variant) -> str:
    return f"{variant.denoiser_bytes / 1e6:.2f} MB"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="report.json of make demo")
    parser.add_argument("results", type=Path, help="report.json of make results")
    given = parser.parse_args()
    demo, results = (Comparison.from_json(json.loads(path.read_text())) for path in (given.demo, given.results))
    print(demo_table(demo), "\nThe same bits for every layer:", budget_table(results, mixed=False), sep="\n\n")
    print("\nBits allocated over the model:", budget_table(results, mixed=True), sep="\n\n")


if __name__ == "__main__":
    main()
