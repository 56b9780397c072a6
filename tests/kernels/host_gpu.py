"""``decode.cu`` as C++ on this machine, under AddressSanitizer: a GPU for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqcompress.kernels.cuda.driver import Kernel
from vqcompress.kernels.cuda.groups import Part
from vqcompress.kernels.cuda.jobs import POINTERS, Launch, launches
from vqcompress.matrix_view import matrix_shape

HOST = Path(__file__).parent / "host"
SOURCES = Path(__file__).parents[2] / "vqcompress" / "kernels" / "cuda"
COMPILER = shutil.which("g++") or shutil.which("clang++")
OPTIONS = (
    "-std=c++20",
    "-O1",
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover",
    "-pthread",
    "-w",
)
THREADS, GRID = 32, 2


class Recorded:
    """Tensors of launches, by the number that stands for their address."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) << 40


class Batch:
    """Launches to compile and run together. Each writes to an output of its own, filled with 0xaa before."""

    def __init__(self) -> None:
        self.runs: list[tuple[Launch, list[Tensor], int]] = []

    def add(self, weights, dtype, parts: Sequence[Part] = ()) -> list[Launch]:
        """Decode ``weights`` one after the other in one output, or where ``parts`` say; returns the launches."""
        sizes = [int(np.prod(matrix_shape(shape))) for _, shape, _ in weights]
        outs = [part.at for part in parts] or [sum(sizes[:index]) for index in range(len(sizes))]
        end, recorded = parts[-1].end if parts else sum(sizes), Recorded()
        made = launches(weights, dtype, outs, recorded, THREADS)
        self.runs += [(launch, recorded.tensors, end * dtype.itemsize) for launch in made]
        return made

    def run(self, folder: Path) -> list[np.ndarray]:
        """The bytes of each launch's output."""
        kernels = sorted({launch.kernel for launch, _, _ in self.runs}, key=str)
        given = b"".join([numbers(len(self.runs)), *(_launch_bytes(run, kernels) for run in self.runs)])
        done = run_program(folder, kernels, {"VQ_KERNELS": kernels}, "run.h", given)
        found, start = [], 0
        for _, _, size in self.runs:
            found.append(np.frombuffer(done, np.uint8, size, start))
            start += size
        assert start == len(done)
        return found


def run_program(
    folder: Path, kernels: Sequence[Kernel], lists: Mapping[str, Sequence[Kernel]], runner: str, given: bytes
) -> bytes:
    """What ``runner``, compiled behind ``kernels``, writes when it reads ``given``. ``lists`` are the kernels that it
    numbers, by the macro that names them."""
    source, program = folder / "kernels.cpp", folder / "kernels"
    macros = [f"#define {name} {', '.join(kernel.symbol for kernel in own)}" for name, own in lists.items()]
    sources = [SOURCES / name for name in dict.fromkeys(name for kernel in kernels for name in kernel.sources)]
    files = [f'#include "{path}"' for path in (HOST / "gpu.h", *sources)]
    lines = [*files, *(kernel.line for kernel in kernels), *macros, f'#include "{HOST / runner}"']
    source.write_text("\n".join(lines) + "\n")
    assert COMPILER is not None
    subprocess.run([COMPILER, *OPTIONS, str(source), "-o", str(program)], check=True)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program)], input=given, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return done.stdout


def _launch_bytes(run: tuple[Launch, list[Tensor], int], kernels: Sequence) -> bytes:
    launch, tensors, size = run
    head = (kernels.index(launch.kernel), GRID, THREADS, launch.shared, len(launch.jobs), launch.tiles, size)
    used = sorted({int(job[name]) >> 40 for job in launch.jobs for name in POINTERS} - {0})
    jobs, parts = launch.jobs.copy(), [numbers(*head, len(used))]
    for index, number in enumerate(used):
        data = tensors[number - 1].detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        parts += [numbers(len(data)), data]
        for name in POINTERS:
            chosen = launch.jobs[name] >> np.uint64(40) == number
            offset = launch.jobs[name][chosen] & np.uint64((1 << 40) - 1)
            jobs[name][chosen] = np.uint64(index + 1 << 40) | offset
    return b"".join([*parts, jobs.tobytes()])


def numbers(*values: int) -> bytes:
    """As the programs read them."""
    return np.array(values, np.int64).tobytes()
