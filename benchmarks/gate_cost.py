"""What the checks of plain loading cost: an SDXL pipeline loaded with a clock on them.

``python benchmarks/gate_cost.py`` writes a packed UNet of SDXL's form and size with random codes, among text encoders,
tokenizers and an autoencoder of SDXL's sizes, and prints the CPU seconds that ``DiffusionPipeline.from_pretrained``
spends in the gate (headers against the config, the network's size, contents of rates, scales, codebooks and outliers)
over all others of the same load: of the pipeline until its weights are in memory, which they are not before something
copies them, as ``.to("cuda")`` does; of the pipeline whose weights are only mapped; of the UNet alone, mapped, where
little but the gate is left. Reading the layers' specs is not the gate's: the loader takes over what it has read. Each
load runs in a process of its own, as in `benchmarks/loading.py`, with the files in the page cache. The clock runs
inside, since two loads of one kind differ by more than the gate takes on a machine that others share.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import click
import torch

from loading import TINY, in_a_fork, timed, write
from synthetic import FORMATS
from synthetic_pipeline import sdxl_config, surroundings
from vqcompress.integrations.opening_checks import check_first  # noqa: F401 - imported before the first fork
from vqcompress.placement import networks

GATE = (
    "vqcompress.integrations.diffusers_pipelines.check_regular",
    "vqcompress.integrations.diffusers_pipelines.check_sampling",
    "vqcompress.integrations.diffusers_pipelines.without_config",
    "vqcompress.integrations.component_loading._config_to_check",
    "vqcompress.integrations.component_loading._checked",
    "vqcompress.integrations.component_loading.holds_codes",
    "vqcompress.integrations.component_loading.may_exceed",
    "vqcompress.integrations.component_loading.build_without_memory",
    "vqcompress.integrations.stored_tensors.StoredTensors.check_all",
)
NOT_THE_GATE = "vqcompress.integrations.component_loading.layer_specs"


@click.command(help=__doc__)
@click.option("--blocks", default=10, show_default=True, help="Most transformer blocks in a row; SDXL has 10.")
@click.option("--width", default=320, show_default=True, help="Channels at full resolution, of 32s; SDXL has 320.")
@click.option("--format", "name", default="trellis", show_default=True, help=f"Of {', '.join(FORMATS)}.")
@click.option("--rounds", default=21, show_default=True, help="Loads of each kind.")
def main(blocks: int, width: int, name: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        in_a_fork(lambda: write_pipeline(folder / "tiny", TINY, name))
        in_memory(folder / "tiny" / "pipeline")  # what is imported is not counted
        described = in_a_fork(lambda: write_pipeline(folder, {"blocks": blocks, "width": width}, name))
        click.echo(f"{described['packed_layers']} packed layers, {described['packed_bytes'] / 1e6:.0f} MB, {name}")
        for what, opened in (("in memory", in_memory), ("mapped", pipeline), ("UNet, mapped", unet)):
            click.echo(f"{what}: {measured(lambda opened=opened: opened(folder / 'pipeline'), rounds)}")


def measured(opened: Callable[[], Any], rounds: int) -> str:
    """CPU seconds of loads, and of the gate in them."""
    loads = [in_a_fork(lambda: with_a_clock(opened)) for _ in range(rounds)]
    gate, other = (statistics.median(load[part] for load in loads) for part in ("gate", "other"))
    first, middle, third = statistics.quantiles([load["gate"] / load["other"] for load in loads], n=4)
    spread = f"quartiles {first:.1%} and {third:.1%}"
    return f"{gate * 1e3:.1f} ms in the gate, {other * 1e3:.0f} ms otherwise: {middle:.1%} ({spread})"


def with_a_clock(opened: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of one load: in the gate, and all others."""
    clock = Clock()
    with ExitStack() as stack:
        for name in (*GATE, NOT_THE_GATE):
            stack.enter_context(patch(name, clock.on(resolve_name(name), 1 if name in GATE else -1)))
        _, (whole, _) = timed(opened)
    return {"gate": clock.seconds, "other": whole - clock.seconds}


class Clock:
    """Adds up the CPU seconds of the functions that it is put on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on(self, work: Callable[..., Any], sign: int) -> Callable[..., Any]:
        """``work``, whose time counts; with ``sign`` -1 it is taken off, where a function that counts calls it."""

        def clocked(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                result = work(*arguments, **options)
                return iter(list(result)) if isinstance(result, Iterator) else result
            finally:
                self.seconds += sign * (time.process_time() - begun)

        return clocked


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


if __name__ == "__main__":
    main()
