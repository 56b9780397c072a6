"""Checkpoints cut for tensor-parallel training, as Large-DiT and Lumina publish them, put together again.

A folder holds ``consolidated[_ema].00-of-04.pth`` and so on, each with all names: a matrix that was cut by outputs is
a block of rows in each file, one that was cut by inputs (and every embedding table) a block of columns, and what was
not cut is in all files alike. Which of the three follows from the network's own shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vqcompress.errors import ArchitectureError

_NAME = re.compile(r"consolidated(?P<ema>_ema)?\.(?P<rank>\d+)-of-(?P<count>\d+)\.(pth|safetensors)")


def shard_files(folder: str | Path) -> list[Path]:
    """The files of a sharded checkpoint in order; the averaged weights (``_ema``) where there are some.

    Raises ArchitectureError when there are none or one is missing.
    """
    found = [(match, path) for path in sorted(Path(folder).iterdir()) if (match := _NAME.fullmatch(path.name))]
    averaged = [(match, path) for match, path in found if match["ema"]]
    chosen = averaged or found
    ranks = [int(match["rank"]) for match, _ in chosen]
    if not chosen or ranks != list(range(int(chosen[0][0]["count"]))):
        raise ArchitectureError(
            f"{folder} has shards {ranks} of a consolidated checkpoint; all of consolidated[_ema].RR-of-NN.pth (or "
            ".safetensors) are needed, each once."
        )
    return [path for _, path in chosen]


def join_shards(shards: Sequence[Mapping[str, Tensor]], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """One state dict from those of all ranks, in order.

    ``shapes``: of the whole network's tensors by name. Names that it lacks are taken from the first shard, for the
    strict loading that follows to report. Raises ArchitectureError where pieces do not make up the whole.
    """
    names = dict.fromkeys(name for shard in shards for name in shard)
    if incomplete := [name for name in names if any(name not in shard for shard in shards)]:
        raise ArchitectureError(f"These weights are not in every shard: {', '.join(incomplete[:8])}. Copy them again.")
    return {name: _joined(name, [shard[name] for shard in shards], shapes.get(name)) for name in names}


def _joined(name: str, pieces: list[Tensor], shape: torch.Size | None) -> Tensor:
    if shape is None or pieces[0].shape == shape:
        return pieces[0]
    for axis in range(len(shape)):
        others = [piece.shape[:axis] + piece.shape[axis + 1 :] for piece in pieces]
        whole = sum(piece.shape[axis] for piece in pieces) == shape[axis]
        if whole and all(other == shape[:axis] + shape[axis + 1 :] for other in others):
            return torch.cat(pieces, dim=axis)
    raise ArchitectureError(
        f"The {len(pieces)} pieces of {name}, {tuple(pieces[0].shape)} each, do not make up {tuple(shape)}; check the "
        "preset against the checkpoint."
    )


def read_shards(
    folder: str | Path, shapes: Mapping[str, torch.Size], read: Callable[[Path], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The whole state dict of a folder of shards; ``read`` opens one file (see conversion.read_official)."""
    return join_shards([read(path) for path in shard_files(folder)], shapes)
