"""What decoding costs on this CPU: nanoseconds a weight by format, rotation, column scales and kind of layer.

``OMP_NUM_THREADS=1 python benchmarks/decode_cost.py`` prints the constants of `vqcompress.kernels.decode_cost`, which
says which layers come first in a dense budget.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click
import torch

from synthetic import FORMATS, packed_weight
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, column_scales_shape
from vqcompress.kernels.cpu.dense import dense_weight

SHAPE, FILTER = (1280, 2304), (1280, 256, 3, 3)


@click.command(help=__doc__)
@click.option("--rounds", default=9, show_default=True, help="Decodings of each; the fastest counts.")
def main(rounds: int) -> None:
    weight = packed_weight("trellis", SHAPE)
    scales = {COLUMN_SCALES_ON_DISK: torch.zeros(column_scales_shape(SHAPE[1]), dtype=torch.int8)}
    print("| weight | ns a weight |\n|---|---|")
    for name in FORMATS:
        own = packed_weight(name, SHAPE)
        print(f"| {name} | {nanoseconds(own.spec, SHAPE, {**own.tensors, **own.shared}, rounds):.2f} |")
    rows: list[tuple[str, Any, tuple[int, ...], Mapping[str, Any]]] = [
        ("trellis, a filter", weight.spec, FILTER, weight.tensors),
        ("trellis, column scales", replace(weight.spec, column_scales=True), SHAPE, {**weight.tensors, **scales}),
    ]
    rows += [(f"trellis, rotation {b}", replace(weight.spec, rotation=b), SHAPE, weight.tensors) for b in (16, 256)]
    for label, spec, shape, tensors in rows:
        print(f"| {label} | {nanoseconds(spec, shape, tensors, rounds):.2f} |")
    tiny = packed_weight("trellis", (32, 16))
    per_call = nanoseconds(tiny.spec, tiny.shape, tiny.tensors, 50) * 32 * 16
    print(f"\na call: {per_call / 1000:.0f} µs")


def nanoseconds(spec: Any, shape: tuple[int, ...], tensors: Mapping[str, Any], rounds: int) -> float:
    """Of the process, for each weight, in the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        weight = dense_weight(spec, shape, tensors, torch.float32)
        times.append(time.process_time() - start)
    return 1e9 * min(times) / weight.numel()


if __name__ == "__main__":
    main()
