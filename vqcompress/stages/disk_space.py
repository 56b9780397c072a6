"""Whether a run's results will fit on the disk, before hours are spent on them."""

from __future__ import annotations

from math import prod
from pathlib import Path

from vqcompress.disk import free_bytes
from vqcompress.errors import CheckpointError
from vqcompress.placement import networks
from vqcompress.stages.run import Run

NARROW = 2
"""Bytes of a dense weight in the published folder, at least."""


def check_disk_space(run: Run, output: Path, free: int | None = None) -> None:
    """Raise `CheckpointError` if codes in the run's folder and the published folder cannot both fit in ``free`` bytes.

    ``free`` is by default what the disk of ``output`` has. This is the least that a run needs. The second moments are
    checked when their sizes are known (`RecordingLimits`).
    """
    free = free_bytes(output.parent) if free is None else free
    needed = bytes_needed(run) - sum(path.stat().st_size for path in run.store.folder.rglob("*") if path.is_file())
    if needed > free:
        raise CheckpointError(
            f"{output.parent} has {free / 1e9:.3g} GB free, and this run writes at least {needed / 1e9:.3g} GB more "
            f"({run.store.folder.name} and {output.name}); free some space, or choose an output folder on another disk"
        )


def bytes_needed(run: Run) -> int:
    """Bytes of the codes, once in the run's folder and once published, and of the dense rest."""
    packed = sum(prod(run.shape(component, layer)) for component, layers in run.layers.items() for layer in layers)
    weights = sum(p.numel() for network in networks(run.pipeline).values() for p in network.parameters())
    return NARROW * (weights - packed) + int(2 * packed * run.recipe.bits / 8)
