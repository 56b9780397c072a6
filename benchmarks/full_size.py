"""Compress Stable Diffusion XL's UNet at full size on this machine: seconds, memory and bytes of every stage.

``python benchmarks/full_size.py --work FOLDER`` makes the pipeline with synthetic weights (`synthetic_pipeline`), then
calibrates, quantizes and saves it with `vqcompress.quantize`, loads the folder, and compares one call of the UNet with
that of the dense weights: both guidance halves of the last step of an image whose caption and noise calibration did not
see, drawn with the dense weights. Every stage is a process of its own, so that its peak memory is its own. Finished
stages are not repeated, and a stopped stage resumes where it was. The quantizer is set to fast: 10-bit states, no
coordinate descent, the same bits in every layer. Calibration draws few and small images, as a CPU can: its moments have
the right kind and size, not the statistics of an image model, which synthetic weights do not have anyway. ``--blocks``
and ``--width`` trim the model for a trial.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from synthetic_pipeline import make_pipeline
from vqcompress.progress import Progress

STAGES = ("make", "quantize", "load", "dense image", "packed call")
DENSE, PACKED, MEASURED, CALL = "dense", "packed", "measured.json", "call.pt"
HELD_OUT_SEED = 1_000_000  # of the compared image's noise; calibration counts its seeds from 0


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    bits: float
    state_bits: int
    coordinate_descent: int
    prompts: int
    steps: int
    pixels: int
    memory_budget: float
    blocks: int | None
    width: int | None
    tails: bool

    def recipe(self) -> dict[str, Any]:
        """Keys for `vqcompress.quantize`."""
        return {
            "bits": self.bits,
            "budget": "layer",
            "settings": {"state_bits": self.state_bits, "coordinate_descent": self.coordinate_descent},
            "calibration": {
                "prompts": "shapes",
                "count": self.prompts,
                "steps": self.steps,
                "height": self.pixels,
                "width": self.pixels,
                "batch_size": self.prompts,
                "memory_budget_gb": self.memory_budget,
            },
        }


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True, help="Work folder.")
@click.option("--bits", default=3.0, show_default=True)
@click.option("--state-bits", default=10, show_default=True)
@click.option("--coordinate-descent", default=0, show_default=True)
@click.option("--prompts", default=2, show_default=True, help="Calibration prompts.")
@click.option("--steps", default=4, show_default=True, help="Denoising steps of each.")
@click.option("--pixels", default=128, show_default=True, help="Side of the calibration images.")
@click.option("--memory-budget", default=3.0, show_default=True, help="GB of second moments in one pass.")
@click.option("--blocks", type=int, help="Most transformer blocks and ResNets in a row.")
@click.option("--width", type=int, help="Channels at full resolution, a multiple of 32 [default: 320].")
@click.option("--tails/--gaussian", default=True, show_default=True, help="Kind of weights.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
@click.option("--stage", type=click.Choice(STAGES), hidden=True, help="Run this stage in this process.")
def main(work: Path, json_path: Path | None, stage: str | None, **options: Any) -> None:
    settings = Settings(**options)
    work.mkdir(parents=True, exist_ok=True)
    if stage is not None:
        torch.set_num_threads(1)
        run_stage(stage, work, settings)
        return
    for name in STAGES:
        if not measured(work).get(name, {}).get("finished"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--stage", name], check=True)
    found = report(work, settings)
    click.echo(markdown(found))
    if json_path:
        json_path.write_text(json.dumps(found, indent=1) + "\n")


def run_stage(stage: str, work: Path, settings: Settings) -> None:
    """One stage; its time and memory are added to those of earlier, stopped attempts."""
    with Meter(work, stage) as meter:
        if stage == "make":
            make_pipeline(work / DENSE, blocks=settings.blocks, width=settings.width, tails=settings.tails)
        elif stage == "quantize":
            quantize(work, settings, meter)
        elif stage == "load":
            load(work)
        elif stage.startswith("dense"):
            record(work, settings)
        else:
            replay(work)


def quantize(work: Path, settings: Settings, progress: Progress) -> None:
    """`vqcompress.quantize`, with the recordings in a folder of their own, so that they can be measured."""
    import vqcompress

    vqcompress.quantize(
        str(work / DENSE),
        work / PACKED,
        overwrite=True,
        calibration_folder=work / "moments",
        progress=progress,
        **settings.recipe(),
    )


def load(work: Path) -> None:
    """`vqcompress.load`, which verifies every byte first."""
    import vqcompress

    vqcompress.load(work / PACKED)


def record(work: Path, settings: Settings) -> None:
    """Draw the held-out image with the dense weights; the UNet's last call, with its output, goes to a file."""
    from vqcompress.denoiser_calls.record import record_teacher
    from vqcompress.denoiser_calls.sampling import SamplingRun
    from vqcompress.sampling_config import SamplingConfig
    from vqcompress.shapes.scenes import held_out_captions

    pipeline, architecture = narrow_pipeline(work / DENSE)
    sampling = SamplingConfig(settings.steps, height=settings.pixels, width=settings.pixels)
    run = SamplingRun(pipeline, architecture, tuple(held_out_captions(1)), HELD_OUT_SEED, sampling)
    calls = record_teacher(run, count=settings.steps, trajectory=settings.steps)
    torch.save(calls[-1], work / CALL)


def replay(work: Path) -> None:
    """The same call with the packed weights; its output goes to a file."""
    call = torch.load(work / CALL, weights_only=True)
    pipeline, _ = narrow_pipeline(work / PACKED)
    with torch.no_grad():
        output = pipeline.unet(**call["kwargs"]).sample
    torch.save({"output": output.float()}, work / f"{PACKED}.pt")


def narrow_pipeline(folder: Path) -> tuple[Any, Any]:
    """The pipeline with its UNet's weights as narrow as they are stored, and its architecture."""
    from vqcompress.architectures import architecture_of, open_pipeline
    from vqcompress.architectures.narrow_weights import hold_narrow

    pipeline = open_pipeline(folder, narrow=True)
    plain = (torch.nn.Linear, torch.nn.Conv2d)
    hold_narrow(pipeline.unet, [name for name, module in pipeline.unet.named_modules() if type(module) in plain])
    return pipeline, architecture_of(pipeline)


class Meter:
    """Seconds, processor seconds and peak memory of a stage and, as `Progress`, of the parts that it reports."""

    def __init__(self, work: Path, stage: str) -> None:
        self.work, self.stage, self.part = work, stage, ""
        self.before = measured(work)
        self.last = (0.0, 0.0)

    def __enter__(self) -> Meter:
        self._start("open" if self.stage == "quantize" else "")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._note(finished=kind is None)
        if self.stage == "quantize" and kind is None:
            self._put("quantize", {"finished": True})

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        part = stage.split()[0]
        if part != self.part:
            self._note(finished=True)
            self._start(part)
        self._note(finished=done == total, done=done, total=total)
        click.echo(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total} {detail}", err=True)
        if part == "encode" and done == total:
            self._start("swap and save")

    def _start(self, part: str) -> None:
        self.part, self.last = part, (time.perf_counter(), time.process_time())
        self.before = measured(self.work)
        reset_peak()

    def _note(self, finished: bool, **more: int) -> None:
        name = self.part or self.stage
        earlier = self.before.get(name, {})
        wall, cpu = time.perf_counter() - self.last[0], time.process_time() - self.last[1]
        taken = {
            "seconds": round(earlier.get("seconds", 0) + wall, 2),
            "cpu_seconds": round(earlier.get("cpu_seconds", 0) + cpu, 2),
            "peak_bytes": max(earlier.get("peak_bytes", 0), peak_bytes()),
            "attempts": earlier.get("attempts", 0) + 1,
            "finished": finished,
        }
        self._put(name, taken | more)

    def _put(self, name: str, value: dict[str, Any]) -> None:
        path = self.work / MEASURED
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(measured(self.work) | {name: value}, indent=1))
        temporary.replace(path)


def measured(work: Path) -> dict[str, dict[str, Any]]:
    """What was measured so far, by stage."""
    path = work / MEASURED
    return json.loads(path.read_text()) if path.is_file() else {}


def reset_peak() -> None:
    """Reset the peak, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Peak memory of this process, files mapped into it included."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(work: Path, settings: Settings) -> dict[str, Any]:
    """Everything that was measured, and how far the packed UNet's output is from the dense one's."""
    from vqcompress.checkpoint import inspect, read_layer_table

    dense, packed = (torch.load(work / name, weights_only=True)["output"].double() for name in (CALL, f"{PACKED}.pt"))
    found, layers = inspect(work / PACKED), read_layer_table(work / PACKED)
    return {
        "settings": asdict(settings),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        "stages": {name: taken for name, taken in measured(work).items() if "seconds" in taken},
        "bytes": {
            "dense unet": folder_bytes(work / DENSE / "unet"),
            "second moments": folder_bytes(work / "moments"),
            "packed unet": folder_bytes(work / PACKED / "unet"),
            "packed pipeline": folder_bytes(work / PACKED),
        },
        "layers": len(layers),
        "bits_per_weight": found["bits_per_weight"],
        "layer_error": {
            "mean": sum(layer.error for layer in layers) / len(layers),
            "worst": max(layer.error for layer in layers),
        },
        "output": {
            "finite": bool(torch.isfinite(packed).all()),
            "relative_squared_error": float((packed - dense).square().sum() / dense.square().sum()),
        },
    }


def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rows(found: dict[str, Any]) -> Iterator[str]:
    """The table of stages."""
    yield "| stage | seconds | processor seconds | peak memory, GB |"
    yield "|---|---|---|---|"
    for name, taken in found["stages"].items():
        yield f"| {name} | {taken['seconds']:.0f} | {taken['cpu_seconds']:.0f} | {taken['peak_bytes'] / 1e9:.2f} |"


def markdown(found: dict[str, Any]) -> str:
    """Stages, bytes and errors, for reading."""
    lines = [*rows(found), "", "| what | bytes |", "|---|---|"]
    lines += [f"| {name} | {size:,} |" for name, size in found["bytes"].items()]
    error, output = found["layer_error"], found["output"]
    return "\n".join(
        [
            *lines,
            "",
            f"{found['layers']} layers at {found['bits_per_weight']:.3f} bits; relative squared error of a layer's "
            f"output {error['mean']:.2%} on average, {error['worst']:.2%} at worst; "
            f"of the UNet's output {output['relative_squared_error']:.2%} "
            f"({'finite' if output['finite'] else 'NOT FINITE'}).",
        ]
    )


if __name__ == "__main__":
    main()
