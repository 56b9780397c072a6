"""Gather what several processes recorded: the parts of a group go to its owner, in the order of the batches.

Floating-point sums depend on their order, so nothing is reduced in a tree: the owner adds batch after batch, as one
process would that recorded them all. The result has the same bits, however many processes there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqcompress.calibration.shared_inputs import InputGroup
from vqcompress.moments.accumulate import MomentAccumulator, PartialSum
from vqcompress.workers import Workers
from vqcompress.working_memory import balanced


def owners(groups: Sequence[InputGroup], workers: Workers) -> dict[str, int]:
    """First layer of each group -> rank of the process that sums it; bytes are allocated evenly."""
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
    headers = workers.all_gather({name: part.header() for name, part in parts.items()})
    for name, accumulator in accumulators.items():
        for rank in range(recording):
            if rank == owner[name] == workers.rank:
                accumulator.absorb(parts[name])
            elif workers.rank == owner[name]:

                def receive(height: int, width: int, source: int = rank) -> Tensor:
                    return workers.receive(torch.empty(height, width, device=device), source)

                accumulator.absorb(PartialSum.receive(accumulator.columns, headers[rank][name], receive))
            elif workers.rank == rank:
                for tensor in parts.pop(name).tensors():
                    workers.send(tensor, owner[name])
