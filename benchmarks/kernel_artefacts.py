"""Compile the Triton kernels for GPUs that need not be here, and read what the compiler made of them.

``python benchmarks/kernel_artefacts.py`` runs the host code of every kernel on shapes of Stable Diffusion XL with the
launch itself replaced by a note of what would have been launched; each distinct launch is then compiled for compute
capability 8.0, 8.9 and 9.0. Registers, shared memory and bytes spilled to local memory are read from the machine code
by ``cuobjdump``. CI asserts them.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from synthetic import packed_weight
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels.triton import operations as ours
from vqcompress.search.gpu_viterbi import LARGEST_STATE_BITS
from vqcompress.search.triton_viterbi import search_states

CAPABILITIES = (80, 89, 90)
POINTERS = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
POINTERS[torch.int64] = "*i64"
OPTION_NAMES = {"num_warps", "num_stages", "enable_fp_fusion"}
SHAPE = (1280, 640)
Launch = tuple[Any, tuple, dict[str, Any]]


@contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """Launches of Triton kernels land in the list instead of on a GPU."""
    launches: list[Launch] = []
    real = triton.runtime.JITFunction.__getitem__
    triton.runtime.JITFunction.__getitem__ = lambda fn, grid: lambda *a, **k: launches.append((fn, a, k))
    try:
        yield launches
    finally:
        triton.runtime.JITFunction.__getitem__ = real


def cases() -> Iterator[tuple[str, Launch]]:
    """Name -> launch, for every kernel and the constants it is most used with."""
    weights = (("trellis", 3, 16), ("trellis", 3.5, 16), ("trellis", 5, 32), ("additive", 3, 16), ("scalar", 4, 16))
    for name, bits, samples in weights:
        weight = packed_weight(name, SHAPE, bits)
        tensors = {**weight.tensors, **weight.shared}
        x = torch.zeros(samples, SHAPE[1], dtype=torch.bfloat16)
        with noted_launches() as launches:
            ours.decode_transposed(weight.spec, weight.shape, tensors, x.dtype)
            ours.multiply(x, weight.spec, weight.shape, tensors, None)
        for launch in launches:
            if launch[0].__name__ != "finish" or samples > 16:
                yield f"{launch[0].__name__}, {bits} bits{_samples(launch)}", launch

    for state_bits in (12, LARGEST_STATE_BITS):
        with noted_launches() as launches:
            search_states(torch.zeros(2, 64), torch.ones(64), value_table(state_bits, 3, 0.0), 3, 0)
        yield f"viterbi, {state_bits} state bits", launches[0]


def _samples(launch: Launch) -> str:
    return f", {launch[2]['BATCH']} samples" if "BATCH" in launch[2] else ""


def source(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton would compile for these arguments, and its options."""
    fn, arguments, keywords = launch
    options = {name: value for name, value in keywords.items() if name in OPTION_NAMES}
    values = dict(zip(fn.arg_names, arguments, strict=False)) | {k: v for k, v in keywords.items() if k not in options}
    signature, constants, attributes = {}, {}, {}
    fixed = {parameter.name for parameter in fn.params if parameter.do_not_specialize}
    for place, name in enumerate(fn.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name], attributes[place,] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif fn.params[place].is_constexpr or (value == 1 and name not in fixed):
            signature[name], constants[place,] = "constexpr", value
        else:
            signature[name] = "i32"
            if value % 16 == 0 and name not in fixed:
                attributes[place,] = [["tt.divisibility", 16]]
    return ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes), options


def compiled(launch: Launch, capability: int) -> dict[str, int]:
    """Registers a thread, bytes of shared memory a program, bytes of stack and local memory a thread (spills),
    instructions."""
    code, options = source(launch)
    kernel = triton.compile(code, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage, listing = _cuobjdump("--dump-resource-usage", file.name), _cuobjdump("-sass", file.name)
    found = re.search(rf"Function {kernel.metadata.name}:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing about {kernel.metadata.name}:\n{usage}")
    registers, stack, local = map(int, found.groups())
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "instructions": len(re.findall(r"/\*[0-9a-f]{4}\*/\s+\S.*;", listing)),
    }


def _cuobjdump(option: str, path: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


@click.command(help=__doc__)
@click.option("--capability", "capabilities", multiple=True, type=int, default=CAPABILITIES, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(capabilities: tuple[int, ...], as_json: bool) -> None:
    jobs = [(name, launch, capability) for name, launch in cases() for capability in capabilities]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: compiled(job[1], job[2]), jobs))
    rows = [
        {"kernel": name, "capability": capability, **resources}
        for (name, _, capability), resources in zip(jobs, found, strict=True)
    ]
    print(json.dumps(rows, indent=1) if as_json else markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a kernel and GPU."""
    lines = ["| kernel | sm | registers | shared bytes | spilled | instructions |", "|---|---|---|---|---|---|"]
    columns = ("kernel", "capability", "registers", "shared", "spilled", "instructions")
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
