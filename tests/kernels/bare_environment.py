"""An environment with a rented GPU machine's packages and no others, made of links to those that are installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

GIVEN = ("torch", "triton", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "numba", "transformers", "safetensors")
"""torch's CPU build stands for its CUDA build. Where cuda-core is not installed nothing is compiled."""
ABSENT = ("pydantic", "pydantic-core")
"""Newer versions of what transformers needs have them; that machine has not."""


def make_environment(folder: Path) -> Path:
    """Make it in ``folder``; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for found in with_needs(GIVEN):
        for name in {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}:
            source = Path(str(found.locate_file(name)))
            if source.exists() and not (site / name).exists():
                os.symlink(source, site / name)
    return folder / "bin" / "python"


def with_needs(names: Iterable[str]) -> list[Distribution]:
    """The distributions of these names that are installed, and of all that they need, without extras."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found or name in ABSENT:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        needs = [Requirement(line) for line in found[name].requires or []]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return list(found.values())
