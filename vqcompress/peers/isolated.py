"""Peers that run in a process of their own, with an interpreter of their own where one is named.

The process runs ``workers/worker.py`` with the script of one package. Weights go to it and come back as safetensors
files, one line of JSON each way per weight; it is started with the first weight and ended with this process. So a
package under another licence, or one that needs other versions than ours, is neither imported nor linked here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vqcompress.errors import UnsupportedError
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers.peer import PeerWeight, UnfitForPeerError

WORKERS = Path(__file__).with_name("workers")


@dataclass(frozen=True)
class Isolated:
    """A package that runs in its own process.

    ``script`` is its file in ``workers``; ``packages`` are what it needs; ``variable`` is the environment variable
    that names an interpreter which has them. Without it, this interpreter is asked.
    """

    script: str
    packages: tuple[str, ...]
    variable: str

    @property
    def python(self) -> str:
        """The interpreter."""
        return os.environ.get(self.variable) or sys.executable

    def found(self) -> str:
        """The packages and their versions in that interpreter, or nothing."""
        return _versions(self.python, self.packages)

    def install(self, *extra: str) -> str:
        """The commands that make an interpreter with the packages and name it."""
        folder = f"{self.script.removesuffix('.py')}-env"
        packages = " ".join((*self.packages, *extra))
        return (
            f"python -m venv {folder} && {folder}/bin/pip install torch safetensors {packages} && "
            f"export {self.variable}=$PWD/{folder}/bin/python"
        )

    def encode(self, matrix: Tensor, moment: SecondMoment | None, **options: Any) -> PeerWeight:
        """Let the package quantize ``matrix [out, columns]``. Raises `UnfitForPeerError` with its own reason."""
        return _worker(self.python, self.script).encode(matrix, moment, options)


@cache
def _versions(python: str, packages: tuple[str, ...]) -> str:
    code = "import importlib.metadata as m, sys; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    try:
        asked = subprocess.run([python, "-I", "-c", code, *packages], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


@cache
def _worker(python: str, script: str) -> _Worker:
    return _Worker(python, script)


class _Worker:
    """A running process and the folder through which it is given weights."""

    def __init__(self, python: str, script: str) -> None:
        self.python = python
        self.folder = tempfile.TemporaryDirectory(prefix="vqcompress-peer-")
        self.log = open(Path(self.folder.name) / "log", "w+b")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [python, "-I", str(WORKERS / "worker.py"), str(WORKERS / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "SDNQ_USE_TORCH_COMPILE": "0"},  # compiling takes minutes and changes no code
            text=True,
        )
        weakref.finalize(self, _end, self.process, self.log, self.folder)

    def encode(self, matrix: Tensor, moment: SecondMoment | None, options: dict[str, Any]) -> PeerWeight:
        source, target = (str(Path(self.folder.name) / name) for name in ("in.safetensors", "out.safetensors"))
        tensors = {"weight": matrix}
        if moment is not None:
            tensors["moment"] = moment.dense().float().cpu().contiguous()
        save_file(tensors, source)
        answer = self._ask({"source": source, "target": target, "options": options})
        if "unfit" in answer:
            raise UnfitForPeerError(answer["unfit"])
        return PeerWeight(load_file(target)["dense"], answer["nbytes"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.log.seek(0)
            last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise UnsupportedError(f"{self.python} ended while quantizing: {' '.join(last) or 'it said nothing'}")
        return json.loads(line)


def _end(process: subprocess.Popen, log: Any, folder: tempfile.TemporaryDirectory) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        if stream is not None:
            stream.close()
    folder.cleanup()
