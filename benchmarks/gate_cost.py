"""What the checks of plain loading cost: an SDXL pipeline loaded with and without them, in turn.

``python benchmarks/gate_cost.py`` writes a packed UNet of SDXL's form and size with random codes, among text encoders
and an autoencoder of SDXL's sizes, and prints the CPU seconds of ``DiffusionPipeline.from_pretrained`` with the gate
(headers against the config, the network's size, contents of rates, scales, codebooks and outliers) over one without:
of the pipeline until its weights are in memory, which they are not before something copies them, as ``.to("cuda")``
does; of the pipeline whose weights are only mapped; of the UNet alone, mapped, where little but the gate is left. Each
load runs in a process of its own, as in `benchmarks/loading.py`, with the files in the page cache; figures are ratios
of medians.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch

from loading import TINY, in_a_fork, timed, write
from synthetic import FORMATS
from synthetic_pipeline import sdxl_config, surroundings
from vqcompress.integrations.opening_checks import check_first  # noqa: F401 - imported before the first fork
from vqcompress.placement import networks

OFF = (
    ("vqcompress.integrations.stored_tensors.StoredTensors.check_all", lambda *arguments: None),
    ("vqcompress.integrations.component_loading._config_to_check", lambda folder: None),
)


@click.command(help=__doc__)
@click.option("--blocks", default=10, show_default=True, help="Most transformer blocks in a row; SDXL has 10.")
@click.option("--width", default=320, show_default=True, help="Channels at full resolution, of 32s; SDXL has 320.")
@click.option("--format", "name", default="trellis", show_default=True, help=f"Of {', '.join(FORMATS)}.")
@click.option("--rounds", default=9, show_default=True, help="Loads of each kind.")
def main(blocks: int, width: int, name: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        in_a_fork(lambda: write_pipeline(folder / "tiny", TINY, name))
        in_memory(folder / "tiny" / "pipeline")  # what is imported is not counted
        described = in_a_fork(lambda: write_pipeline(folder, {"blocks": blocks, "width": width}, name))
        click.echo(f"{described['packed_layers']} packed layers, {described['packed_bytes'] / 1e6:.0f} MB, {name}")
        for what, opened in (("in memory", in_memory), ("mapped", pipeline), ("UNet, mapped", unet)):
            click.echo(f"{what}: {compared(lambda opened=opened: opened(folder / 'pipeline'), rounds)}")


def compared(opened: Callable[[], Any], rounds: int) -> str:
    """CPU seconds of loads with and without the gate."""
    kinds = {True: opened, False: without_the_gate(opened)}
    taken: dict[bool, list[float]] = {gate: [] for gate in kinds}
    for _ in range(rounds):
        for gate, load in kinds.items():
            taken[gate].append(in_a_fork(lambda load=load: {"cpu": timed(load)[1][0]})["cpu"])
    on, off = (statistics.median(taken[gate]) for gate in (True, False))
    least = min(taken[True]) / min(taken[False]) - 1
    return f"{on:.3f} CPU s with the gate, {off:.3f} without: {on / off - 1:+.1%} (of the least times: {least:+.1%})"


def write_pipeline(folder: Path, size: dict[str, int], name: str) -> dict[str, Any]:
    """An SDXL pipeline in ``folder / "pipeline"`` whose UNet has this size and is packed."""
    described = write(folder / "float16", size, name, 3)
    whole = surroundings(sdxl_config(**size), full_size=True).to(torch.float16)
    whole.save_pretrained(folder / "pipeline")
    (folder / "float16" / "packed").rename(folder / "pipeline" / "unet")
    index = folder / "pipeline" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["diffusers", "UNet2DConditionModel"]}))
    return described


def pipeline(folder: Path) -> Any:
    """The whole, loaded as users of diffusers do."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)


@torch.no_grad()
def in_memory(folder: Path) -> Any:
    """The whole, and a copy of each tensor."""
    opened = pipeline(folder)
    for network in networks(opened).values():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.clone()
    return opened


def unet(folder: Path) -> Any:
    """The UNet alone."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float16)


def without_the_gate(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` with the checks replaced by nothing."""

    def run() -> Any:
        with patch(*OFF[0]), patch(*OFF[1]):
            return work()

    return run


if __name__ == "__main__":
    main()
