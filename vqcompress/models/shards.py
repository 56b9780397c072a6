"""Join checkpoints that were split for tensor-parallel training, as Large-DiT and Lumina publish them.

A folder has the files ``consolidated[_ema].00-of-04.pth`` and so on, each with all names. A matrix that was split by
outputs is a block of rows in each file. A matrix that was split by inputs, and every embedding table, is a block of
columns. A tensor that was not split is the same in all files. The network's own shapes show which case applies.
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
    """Return the files of a sharded checkpoint in order, or those of the averaged weights (``_ema``) if there are any.

    Raises ArchitectureError when there are no files or one is missing.
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
    """Join the state dicts of all ranks, in order, into one.

    ``shapes``: shapes of the whole network's tensors by name. Names that are not in it are taken from the first shard,
    and the strict loading that follows reports them. Raises ArchitectureError if pieces do not make up the whole.
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
    """Read the whole state dict from a folder of shards. ``read`` opens one file (see conversion.read_official)."""
    return join_shards([read(path) for path in shard_files(folder)], shapes)
