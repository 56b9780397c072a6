"""What the checks of plain loading cost: a packed UNet of SDXL's form loaded with and without them, in turn.

``python benchmarks/gate_cost.py`` writes the UNet with random codes and prints the CPU seconds of a load with the gate
(headers against the config, the network's size, contents of rates, scales, codebooks and outliers) over one without.
Each load runs in a process of its own, as in `benchmarks/loading.py`; the figure is the ratio of medians.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch

from loading import in_a_fork, timed, write
from synthetic import FORMATS
from vqcompress.integrations.opening_checks import check_first  # noqa: F401 - imported before the first fork

OFF = (
    ("vqcompress.integrations.stored_tensors.StoredTensors.check", lambda *arguments: None),
    ("vqcompress.integrations.component_loading._packed_config", lambda folder: None),
)


@click.command(help=__doc__)
@click.option("--blocks", default=2, show_default=True, help="Most transformer blocks in a row; SDXL has 10.")
@click.option("--width", default=160, show_default=True, help="Channels at full resolution, of 32s; SDXL has 320.")
@click.option("--format", "name", default="trellis", show_default=True, help=f"Of {', '.join(FORMATS)}.")
@click.option("--rounds", default=9, show_default=True, help="Loads of each kind.")
def main(blocks: int, width: int, name: str, rounds: int) -> None:

    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "float16"
        described = in_a_fork(lambda: write(folder, {"blocks": blocks, "width": width}, name, 3))
        load(folder / "packed", True)
        load(folder / "packed", False)
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for gate in taken:
                taken[gate].append(in_a_fork(lambda gate=gate: load(folder / "packed", gate))["cpu"])
    on, off = (statistics.median(taken[gate]) for gate in (True, False))
    click.echo(
        f"{described['packed_layers']} packed layers, {described['packed_bytes'] / 1e6:.0f} MB, {name}: "
        f"{on:.3f} CPU s with the gate, {off:.3f} without: {on / off - 1:+.1%} (least: {min(taken[True]):.3f}, "
        f"{min(taken[False]):.3f}: {min(taken[True]) / min(taken[False]) - 1:+.1%})"
    )


def load(folder: Path, gate: bool) -> dict[str, float]:
    """CPU seconds of one load in this process."""
    from diffusers import UNet2DConditionModel

    def opened() -> Any:
        return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float16)

    return {"cpu": timed(opened if gate else without_the_gate(opened))[1][0]}


def without_the_gate(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` with the checks replaced by nothing."""

    def run() -> Any:
        with patch(*OFF[0]), patch(*OFF[1]):
            return work()

    return run


if __name__ == "__main__":
    main()
