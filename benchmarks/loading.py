"""Loading a packed UNet of SDXL's form against loading the dense one: time, memory, and the first call after it.

``python benchmarks/loading.py`` writes a UNet with synthetic weights and its packed form (random codes: any byte is a
valid one) in each dtype to a temporary folder and loads the two in turn, several times, with both in the page cache.
Each load runs in a process forked off one that has loaded nothing but two tiny models: imports are paid for, caches of
layers are not. Medians. CPU seconds are those of the whole process; memory is the growth of the most that was resident,
mapped pages of the file included, after loading and after two calls. A dense model reads its mapped weights in the
first call, a packed one makes its kernels ready there: ``until ready`` is loading and what the first call takes longer
than the second. Then the same *from disk*, as after a reboot: the page cache forgets the files before each load (Linux
only), and the clock runs through the first call.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

import vqcompress  # noqa: F401 - makes packed folders known to diffusers
from synthetic import FORMATS
from synthetic_pipeline import sdxl_config
from unet_step import random_codes
from vqcompress.layers import swap

KINDS = ("dense", "packed")
TINY = {"blocks": 1, "width": 32}
FIGURES = ("load_cpu", "load_wall", "load_peak", "first_cpu", "second_cpu", "ready_cpu", "ready_peak")
COLD_FIGURES = ("cold_load_wall", "cold_first_wall")
LABELS = ("load, CPU s", "load, wall s", "peak after load, MB", "first call, CPU s", "second call, CPU s",
          "until ready, CPU s", "peak after calls, MB", "from disk: load, wall s",
          "from disk: through the first call, wall s")  # fmt: skip


@click.command(help=__doc__)
@click.option("--blocks", default=2, show_default=True, help="Most transformer blocks in a row; SDXL has 10.")
@click.option("--width", default=160, show_default=True, help="Channels at full resolution, of 32s; SDXL has 320.")
@click.option("--format", "name", default="trellis", show_default=True, help=f"Of {', '.join(FORMATS)}.")
@click.option("--bits", default=3, show_default=True, help="Bits a packed weight.")
@click.option("--dtypes", default="float32,float16", show_default=True, help="Of dense weights, comma-separated.")
@click.option("--rounds", default=7, show_default=True, help="Loads of each kind.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the numbers here as well.")
def main(blocks: int, width: int, name: str, bits: int, dtypes: str, rounds: int, json_path: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = [
            benchmark(Path(folder), {"blocks": blocks, "width": width}, name, bits, dtype, rounds)
            for dtype in dtypes.split(",")
        ]
    print("\n\n".join(map(markdown, tables)))
    if json_path:
        Path(json_path).write_text(json.dumps(tables, indent=1))


def benchmark(folder: Path, size: dict[str, int], name: str, bits: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Medians of `FIGURES` and `COLD_FIGURES` for each of `KINDS`, with what was loaded, as plain data."""
    for label, extent in (("tiny", TINY), ("full", size)):
        if not (folder / label / dtype).exists():
            described = in_a_fork(lambda label=label, extent=extent: write(folder / label / dtype, extent, name, bits))
    for kind in KINDS:
        measured(folder / "tiny" / dtype / kind)
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    # From disk last: memory that the page cache gives back to a virtual machine's host costs whoever takes it next.
    for measure in (measured, measured_from_disk):
        for _ in range(rounds):
            for kind in KINDS:
                path = folder / "full" / dtype / kind
                taken[kind].append(in_a_fork(lambda measure=measure, path=path: measure(path)))
    medians = {
        kind: {
            figure: statistics.median(run[figure] for run in runs if figure in run)
            for figure in FIGURES + COLD_FIGURES * hasattr(os, "posix_fadvise")
        }
        for kind, runs in taken.items()
    }
    return {"dtype": dtype, "format": name, "threads": torch.get_num_threads(), **described, **medians}


def write(folder: Path, size: dict[str, int], name: str, bits: int) -> dict[str, Any]:
    """The dense UNet and the packed one; how large they are."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**sdxl_config(**size)).to(getattr(torch, folder.name))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    unet.save_pretrained(folder / "dense")
    codes = random_codes(unet, name, bits, "cpu")
    swap(unet, codes)
    unet.save_pretrained(folder / "packed")
    sizes = {f"{kind}_bytes": sum(f.stat().st_size for f in (folder / kind).iterdir()) for kind in KINDS}
    return {"parameters": parameters, "packed_layers": len(codes), **sizes}


@torch.no_grad()
def measured(folder: Path) -> dict[str, float]:
    """One load and two calls in this process."""
    from diffusers import UNet2DConditionModel

    gc.collect()
    before, dtype = peak(), getattr(torch, folder.parent.name)
    unet, (load_cpu, load_wall) = timed(lambda: UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype))
    load_peak, inputs = peak() - before, sample(unet.config, dtype)
    calls = [timed(lambda: unet(**inputs))[1][0] for _ in range(2)]
    ready = load_cpu + calls[0] - calls[1]
    return dict(zip(FIGURES, (load_cpu, load_wall, load_peak, *calls, ready, peak() - before), strict=True))


@torch.no_grad()
def measured_from_disk(folder: Path) -> dict[str, float]:
    """One load and one call, of files that no cache holds; nothing where the system cannot forget them."""
    from diffusers import UNet2DConditionModel

    if not hasattr(os, "posix_fadvise"):
        return {}
    forget(folder)
    dtype = getattr(torch, folder.parent.name)
    unet, (_, load_wall) = timed(lambda: UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype))
    inputs = sample(unet.config, dtype)
    _, (_, first_wall) = timed(lambda: unet(**inputs))
    return dict(zip(COLD_FIGURES, (load_wall, load_wall + first_wall), strict=True))


def forget(folder: Path) -> None:
    """Take the files of ``folder`` out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not yet written cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sample(config: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The smallest latents that pass through a UNet of SDXL's form."""
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": torch.zeros(1, 4, 8, 8, dtype=dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.zeros(1, 8, config.cross_attention_dim, dtype=dtype),
        "added_cond_kwargs": {"text_embeds": torch.zeros(1, pooled, dtype=dtype), "time_ids": torch.zeros(1, 6)},
    }


def timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What ``work`` returns, with CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, (time.process_time() - cpu, time.perf_counter() - wall)


def peak() -> int:
    """Most bytes that this process has had resident."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns in a child of this process, which must not have started threads."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    if os.waitpid(child, 0)[1] or not answer:
        raise RuntimeError("a measured process has failed, see above")
    return json.loads(answer)


def markdown(table: dict[str, Any]) -> str:
    """A row per figure."""
    dense, packed = table["dense"], table["packed"]
    head = (
        f"{table['parameters'] / 1e6:.0f} M parameters, {table['packed_layers']} packed layers, {table['format']}, "
        f"{table['dtype']}, {table['dense_bytes'] / 1e6:.0f} MB dense, {table['packed_bytes'] / 1e6:.0f} MB packed, "
        f"CPU, {table['threads']} threads"
    )
    lines = [head, "", "| | dense | packed | of dense |", "|---|---|---|---|"]
    for figure, label in zip((*FIGURES, *COLD_FIGURES), LABELS, strict=True):
        if figure not in dense:
            continue
        unit = 1e6 if figure.endswith("peak") else 1
        values = [table[kind][figure] / unit for kind in KINDS]
        shown = [f"{value:.0f}" if unit > 1 else f"{value:.3f}" for value in values]
        lines.append(f"| {label} | {shown[0]} | {shown[1]} | {packed[figure] / dense[figure]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
