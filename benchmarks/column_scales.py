"""What column scales gain on layers with columns of two sizes, as where a UNet's block reads a skip connection.

``python benchmarks/column_scales.py [--bits 2 3 4] [--ratio 10]`` quantizes two synthetic layers with and without
column scales, and with GPTQ in groups of 64 for comparison: *apart*, half of the columns ``ratio`` times smaller than
the other half and their inputs as much larger, so that all count alike; and *mixed*, the same over correlated inputs.
It prints relative output errors, with all bits counted, as Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqcompress.quantizers import quantize_weight, quantizer_of
from vqcompress.quantizers.layer_error import relative_error

VECTOR_METHODS = ("trellis", "additive")


@dataclass(frozen=True)
class Size:
    """A layer's output channels and columns, and how many inputs its second moment is taken over."""

    outputs: int = 320
    columns: int = 640
    inputs: int = 4096


def layers(ratio: float, size: Size) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> weight ``[outputs, columns]`` and second moment ``[columns, columns]``."""
    draw = torch.Generator().manual_seed(0)
    small = torch.where(torch.arange(size.columns) < size.columns // 2, 1.0, 1 / ratio)
    weight = torch.randn(size.outputs, size.columns, generator=draw) * small
    x = torch.randn(size.inputs, size.columns, generator=draw)
    spectrum = torch.arange(1, size.columns + 1) ** -0.5
    mixed = x * spectrum @ torch.randn(size.columns, size.columns, generator=draw)
    return {name: (weight, _moment(inputs / small)) for name, inputs in (("apart", x), ("mixed", mixed))}


def _moment(inputs: Tensor) -> Tensor:
    return inputs.t() @ inputs / len(inputs)


def table(ratio: float, widths: list[float], size: Size | None = None) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| layer | bits | " + " | ".join(f"{m}, plain | column scales" for m in VECTOR_METHODS) + " | gptq (bits) |"
    ]
    lines.append("|---|---|" + "---|" * (2 * len(VECTOR_METHODS) + 1))
    for name, (weight, moment) in layers(ratio, size or Size()).items():
        for bits in widths:
            cells = []
            for method in VECTOR_METHODS:
                for gains in (False, "auto"):
                    settings = replace(quantizer_of(method).settings(), column_scales=gains)
                    found = quantize_weight(weight, moment, method=method, bits=bits, settings=settings)
                    cells.append(f"{relative_error(weight, found.decode(), moment):.3g}")
            scalar = quantize_weight(weight, moment, method="gptq", bits=round(bits))
            error = relative_error(weight, scalar.decode(), moment)
            lines.append(f"| {name} | {bits:g} | {' | '.join(cells)} | {error:.3g} ({scalar.bits_per_weight:.2f}) |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, nargs="+", default=[2, 3, 4])
    parser.add_argument("--ratio", type=float, default=10.0)
    given = parser.parse_args()
    print("\n".join(table(given.ratio, given.bits)))


if __name__ == "__main__":
    main()
