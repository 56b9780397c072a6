"""Use one process for long: ``python -m tests.faults.soak`` (`make soak`).

200 cycles of load → generate → free, then 50 of quantize, on a tiny pipeline. After the warm-up, memory in use must not
grow by 2 % or more, and no file descriptor, thread, child process or temporary file may be left.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vqcompress
from tests.conftest import draw, tiny_stable_diffusion
from vqcompress.working_memory import return_freed_memory

LIMIT = 0.02
WARM_UP = 0.2
"""Share of the cycles before memory is compared: caches fill, and the allocator's arenas find their size."""


@dataclass(frozen=True)
class Usage:
    """What a process holds: bytes in memory, open descriptors, threads, children, temporary files."""

    bytes: int
    descriptors: int
    threads: int
    children: int
    temporary: int

    @classmethod
    def now(cls, temporary: Path) -> Usage:
        """Of this process, after a collection of garbage."""
        gc.collect()
        return_freed_memory()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return cls(
            int(status["VmRSS"].split()[0]) * 1024,
            len(os.listdir("/proc/self/fd")),
            int(status["Threads"]) + threading.active_count(),
            len(children),
            sum(1 for _ in temporary.rglob("*")),
        )


def repeat(cycles: int, work: Callable[[int], Any], temporary: Path) -> tuple[Usage, Usage]:
    """Usage after the warm-up and at the end; of memory, the median over a tenth of the cycles."""
    warm, tenth, seen = int(WARM_UP * cycles), max(1, cycles // 10), list[Usage]()
    for cycle in range(cycles):
        work(cycle)
        seen.append(Usage.now(temporary))
    return _median(seen[warm : warm + tenth]), _median(seen[-tenth:])


def _median(usages: list[Usage]) -> Usage:
    return sorted(usages, key=lambda usage: usage.bytes)[len(usages) // 2]


def generate(folder: Path) -> Callable[[int], None]:
    """Load the compressed ``folder``, draw an image, free it."""

    def work(cycle: int) -> None:
        assert torch.isfinite(draw(vqcompress.load(folder))).all()

    return work


def quantize(source: Path, output: Path, calibration: dict[str, Any]) -> Callable[[int], None]:
    """Quantize the pipeline in ``source`` to ``output``, and remove that."""

    def work(cycle: int) -> None:
        vqcompress.quantize(str(source), output, method="rtn", bits=4, budget="model", calibration=calibration)
        shutil.rmtree(output)

    return work


def report(name: str, cycles: int, before: Usage, after: Usage) -> bool:
    """Print what changed; whether it is within the limits."""
    growth = after.bytes / before.bytes - 1
    left = {
        what: getattr(after, what) - getattr(before, what)
        for what in ("descriptors", "threads", "children", "temporary")
    }
    print(
        f"{cycles} x {name}: memory {before.bytes / 2**20:.1f} -> {after.bytes / 2**20:.1f} MiB ({growth:+.2%}), left: "
        + ", ".join(f"{number} {what}" for what, number in left.items())
    )
    return growth < LIMIT and not any(number > 0 for number in left.values())


def main() -> None:
    """Run both and leave with 1 if one is beyond its limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=200)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vqcompress-soak-") as name:
        folder, temporary = Path(name), Path(name) / "tmp"
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        tiny_stable_diffusion().save_pretrained(folder / "model")
        (folder / "prompts.txt").write_text("a\nb c\n")
        calibration = {"count": 2, "steps": 1, "height": 8, "width": 8, "prompts": str(folder / "prompts.txt")}
        packed = vqcompress.quantize(
            str(folder / "model"),
            folder / "packed",
            method="trellis",
            settings={"state_bits": 8},
            calibration=calibration,
        )
        works = [
            ("load, generate, free", options.loads, generate(packed)),
            ("quantize", options.runs, quantize(folder / "model", folder / "out", calibration)),
        ]
        held = [report(what, cycles, *repeat(cycles, work, temporary)) for what, cycles, work in works if cycles]
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["model", "packed", "prompts.txt", "tmp"], left
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
