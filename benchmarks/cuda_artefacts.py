"""Compile the CUDA C++ kernels for GPUs that need not be here, and read what the compiler made of them.

``python benchmarks/cuda_artefacts.py`` compiles decoding at several rates, one alone and all that share a kernel, and
with every transform, for compute
capability 7.5 to 12.0, by NVRTC (``pip install cuda-core cuda-bindings nvidia-cuda-nvrtc``) or else by ``nvcc``.
Registers, spills and the instructions of the decoding loop are read from the machine code by the ``cuobjdump`` that
comes with Triton. Instructions a weight are those of one round of the loop over the weights that a round stores: of
paths that a round chooses from all are counted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import torch

from vqcompress.kernels.cuda.driver import compiled, source
from vqcompress.kernels.cuda.jobs import ALIGNED, FACTORS, OUTLIERS, ROTATED, TOGETHER, KernelName
from vqcompress.kernels.cuda.products import CAPABILITY, RATES, TILES, ProductName

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
WHOLE = ALIGNED | ROTATED | FACTORS | OUTLIERS


def _trellis(*halves: int, table: str = "SHARED_FLOAT", flags: int = ALIGNED) -> KernelName:
    return KernelName("trellis", halves, table, flags, torch.bfloat16)


KERNELS = {
    **{f"trellis, {halves / 2:g} bits": _trellis(halves) for halves in (4, 5, 6, 8, 12)},
    "trellis, 3 bits, column scales": _trellis(6, flags=ALIGNED | FACTORS),
    "trellis, 3 bits, 14 state bits": _trellis(6, table="SHARED_HALF"),
    "trellis, 3 bits, 16 state bits": _trellis(6, table="GLOBAL_HALF"),
    "trellis, whole bits": _trellis(*TOGETHER[0]),
    "trellis, half bits": _trellis(*TOGETHER[1]),
    "trellis, whole bits, every transform": _trellis(*TOGETHER[0], flags=WHOLE),
    "additive": KernelName("additive", (8,), "", ALIGNED, torch.bfloat16),
    "scalar, 4 bits": KernelName("scalar", (4,), "", ALIGNED, torch.bfloat16),
    **{f"product, {16 * tiles} samples": ProductName("SHARED_HALF", torch.bfloat16, tiles) for tiles in TILES},
    "product, 16 samples, 16 state bits": ProductName("GLOBAL_HALF", torch.bfloat16, 1),
}
STORED = 8  # weights of a 16-byte store in a 16-bit dtype
MULTIPLIED = 32  # weights of a thread in a round of a product


@dataclass(frozen=True)
class Artefact:
    """Of one kernel: registers a thread, bytes of stack and local memory a thread (spills), instructions of a round of
    the decoding loop for each weight that it stores, and whether there is a barrier in it. Of several loops, the most
    instructions."""

    registers: int
    spilled: int
    instructions_per_weight: float
    barrier_in_loop: bool


def has_compiler() -> bool:
    """Whether NVRTC or nvcc is here, and cuobjdump."""
    return find_spec("triton") is not None and (_has_nvrtc() or shutil.which("nvcc") is not None)


def _has_nvrtc() -> bool:
    return all(find_spec(name) is not None for name in ("cuda", "cuda.core", "cuda.bindings", "nvidia"))


def artefact(kernel: KernelName | ProductName, capability: int) -> Artefact:
    """What the compiler makes of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        _compile(kernel, capability, path)
        usage, listing = _cuobjdump("--dump-resource-usage", path), _cuobjdump("-sass", path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing about {kernel.symbol}:\n{usage}")
    if isinstance(kernel, ProductName):
        loops, rates = multiplying_loops(listing), len(RATES)
        most = max((len(loop) / MULTIPLIED for loop in loops), default=0.0)
    else:
        loops, rates = decoding_loops(listing), 1 if kernel.flags & ROTATED else len(kernel.sizes)
        most = max((len(loop) / (STORED * _wide_stores(loop)) for loop in loops), default=0.0)
    if len(loops) < rates:
        raise RuntimeError(f"{kernel.symbol} has {len(loops)} loops over weights, not {rates}")
    registers, stack, local = map(int, found.groups())
    barrier = any(re.search(r"\bBAR\.", line) for loop in loops for line in loop)
    return Artefact(registers, stack + local, most, barrier)


def decoding_loops(listing: str) -> list[list[str]]:
    """The instructions of each innermost loop with most 16-byte stores: one for each rate of a kernel."""
    innermost = _innermost(listing, lambda loop: _wide_stores(loop) > 0)
    most = max(map(_wide_stores, innermost), default=0)
    return [loop for loop in innermost if _wide_stores(loop) == most]


def multiplying_loops(listing: str) -> list[list[str]]:
    """The instructions of each innermost loop with products: one for each rate."""
    return _innermost(listing, lambda loop: any(re.search(r"\bHMMA\.", line) for line in loop))


def _innermost(listing: str, wanted: Callable[[list[str]], bool]) -> list[list[str]]:
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", listing)
    lines = [(int(address, 16), text) for address, text in found]
    loops = []
    for address, text in lines:
        target = re.search(r"\bBRA(?:\.\w+)*\s+(?:\w+,\s*)?`?\(?(?:\.L_x_\d+)?\)?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append([own for at, own in lines if int(target[1], 16) <= at <= address])
    loops = [loop for loop in loops if wanted(loop)]
    return [loop for loop in loops if not any(other is not loop and _within(other, loop) for other in loops)]


def _wide_stores(lines: list[str]) -> int:
    """How many of them store 16 bytes."""
    return sum(bool(re.search(r"\bSTG?\.E(\.\w+)*\.128\b", line)) for line in lines)


def _within(inner: list[str], outer: list[str]) -> bool:
    return len(inner) < len(outer) and "\n".join(inner) in "\n".join(outer)


def _compile(kernel: KernelName | ProductName, capability: int, path: Path) -> None:
    if _has_nvrtc():
        path.write_bytes(bytes(compiled(kernel, divmod(capability, 10)).code))
        return
    text = path.with_suffix(".cu")
    text.write_text(f"{source(kernel.sources)}\n{kernel.line}\n")
    options = ["-std=c++17", "-fmad=false", f"-arch=sm_{capability}", "-cubin"]
    subprocess.run(["nvcc", *options, "-o", str(path), str(text)], check=True)


def _cuobjdump(option: str, path: Path) -> str:
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout


@click.command(help=__doc__)
@click.option("--capability", "capabilities", multiple=True, type=int, default=CAPABILITIES, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(capabilities: tuple[int, ...], as_json: bool) -> None:
    rows = [
        {"kernel": name, "sm": capability, **asdict(artefact(kernel, capability))}
        for name, kernel in KERNELS.items()
        for capability in capabilities
        if not isinstance(kernel, ProductName) or divmod(capability, 10) >= CAPABILITY
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print("| kernel | sm | registers | spilled | instructions a weight | barrier in the loop |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        each = f"{row['instructions_per_weight']:.2f}"
        cells = (row["kernel"], row["sm"], row["registers"], row["spilled"], each, row["barrier_in_loop"])
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
