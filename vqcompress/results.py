"""What `quantize` and `finetune` return: a folder that can be used as a path, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any


@dataclass(frozen=True, eq=False)
class WrittenFolder(os.PathLike[str]):
    """A folder that was written. It can be given wherever a path can, equals its path, and has a path's methods."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, os.PathLike) and Path(other) == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "path" or name.startswith("__"):
                raise AttributeError(name)
            return getattr(self.path, name)


@dataclass(frozen=True, eq=False)
class CompressedFolder(WrittenFolder):
    """``bits`` per quantized weight with everything stored counted, ``bytes`` on disk, ``layers`` that are quantized.

    ``seconds`` by stage of the run that has just ended; a stage that an earlier, stopped run had finished is not among
    them.
    """

    bits: float
    bytes: int
    layers: int
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TunedFolder(WrittenFolder):
    """``before`` and ``after``: mean square error of the denoiser's outputs on held-out prompts, relative to theirs.

    ``steps`` of training were made, and ``best_step`` is the one that was kept.
    """

    before: float
    after: float
    steps: int
    best_step: int
    seconds: Mapping[str, float] = field(default_factory=dict)
