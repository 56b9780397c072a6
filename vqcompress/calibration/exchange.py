"""Bring together what several processes recorded: every group's parts go to the process that owns it, in the order of the batches.

Floating-point sums depend on their order, so nothing is reduced in a tree: the owner adds batch after batch, as one
process would that recorded them all. The result has the same bits, however many processes there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqcompress.calibration.shared_inputs import InputGroup
from vqcompress.moments.accumulate import MomentAccumulator, Part, blocks
from vqcompress.workers import Workers
from vqcompress.working_memory import balanced

Sizes = tuple[int, int, list[int], bool]
"""Of a part: rows, used rows, rows of each chunk, whether it is summed."""


def owners(groups: Sequence[InputGroup], workers: Workers) -> dict[str, int]:
    """First layer of each group -> rank of the process that sums it; bytes are dealt out evenly."""
    shares = balanced([group.nbytes for group in groups], workers.world_size)
    return {group.layers[0]: share for group, share in zip(groups, shares, strict=True)}


def gather_round(
    accumulators: Mapping[str, MomentAccumulator],
    owner: Mapping[str, int],
    recording: int,
    workers: Workers,
    device: torch.device,
) -> None:
    """End a round in which the first ``recording`` processes recorded a batch each, the lower rank the earlier one.

    All processes call this together, with the same groups in the same order; ``device`` is where they record.
    """
    parts = {name: accumulator.take_part() for name, accumulator in accumulators.items()}
    sizes = workers.all_gather({name: _sizes(part) for name, part in parts.items()})
    for name, accumulator in accumulators.items():
        for rank in range(recording):
            if rank == owner[name] == workers.rank:
                accumulator.absorb(parts[name])
            elif workers.rank == owner[name]:
                accumulator.absorb(_received(sizes[rank][name], accumulator.columns, rank, workers, device))
            elif workers.rank == rank:
                _send(parts.pop(name), owner[name], workers)


def _sizes(part: Part) -> Sizes:
    return part.rows, part.used_rows, [len(chunk) for chunk in part.chunks], part.upper is not None


def _send(part: Part, to: int, workers: Workers) -> None:
    for chunk in part.chunks:
        workers.send(chunk, to)
    if part.upper is not None:
        for block in blocks(part.columns):
            workers.send(part.upper[block, block.start :], to)


def _received(sizes: Sizes, columns: int, source: int, workers: Workers, device: torch.device) -> Part:
    rows, used_rows, chunks, is_summed = sizes

    def receive(height: int, width: int) -> Tensor:
        return workers.receive(torch.empty(height, width, device=device), source)

    held = [receive(count, columns) for count in chunks]
    upper = torch.zeros(columns, columns, device=device) if is_summed else None
    if upper is not None:
        for block in blocks(columns):
            upper[block, block.start :] = receive(block.stop - block.start, columns - block.start)
    return Part(columns, rows, used_rows, held, upper)
