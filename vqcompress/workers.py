"""The processes of one job: a single one, or those that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from vqcompress.errors import VQCompressError

TIMEOUT = timedelta(hours=12)  # the other processes wait while the first records the teacher


@dataclass(frozen=True)
class Workers:
    """``rank`` of ``world_size`` processes, and their collective operations.

    ``all_reduce`` sums tensors over all processes in place. ``barrier`` waits for all processes. ``all_gather`` returns
    the values of all processes, by rank. ``send`` and ``receive`` transfer one tensor, ``receive`` into the given one.
    """

    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Sequence[Tensor]], None] = lambda tensors: None
    barrier: Callable[[], None] = lambda: None
    all_gather: Callable[[Any], list[Any]] = lambda value: [value]
    send: Callable[[Tensor, int], None] = lambda tensor, to: None
    receive: Callable[[Tensor, int], Tensor] = lambda tensor, source: tensor

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0


def expected_workers() -> int:
    """The number of processes that were started together, from the environment that `torchrun` sets."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def workers_here() -> int:
    """The number of these processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process_by_environment() -> bool:
    """Whether this is the process that reports, from the environment, before the processes have joined."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined_workers() -> Iterator[Workers]:
    """Join the processes that `torchrun` started, as described by the environment. On the CPU they use gloo."""
    if expected_workers() < 2:
        yield Workers()
        return
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs

    state = PartialState(cpu=not torch.cuda.is_available(), **InitProcessGroupKwargs(timeout=TIMEOUT).to_kwargs())
    try:
        operations = (_all_reduce, state.wait_for_everyone, _all_gather, _send, _receive)
        yield Workers(state.process_index, state.num_processes, *map(_naming_lost_peers, operations))
    finally:
        state.destroy_process_group()


def _naming_lost_peers(operation: Callable[..., Any]) -> Callable[..., Any]:
    """``operation``, with one clear error if another process has ended."""

    def call(*arguments: Any) -> Any:
        try:
            return operation(*arguments)
        except RuntimeError as error:
            raise VQCompressError(
                "another process of this job has ended, so this one stops too; its own message is above. Finished work "
                "is kept: run the same command again"
            ) from error

    return call


def _all_reduce(tensors: Sequence[Tensor]) -> None:
    """Sum all tensors of the same dtype in one message."""
    from accelerate.utils import reduce

    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        members = [tensor for tensor in tensors if tensor.dtype == dtype]
        total = reduce(torch.cat([tensor.detach().flatten() for tensor in members]), reduction="sum")
        for tensor, part in zip(members, total.split([tensor.numel() for tensor in members]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def _all_gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def _send(tensor: Tensor, to: int) -> None:
    torch.distributed.send(tensor.contiguous(), dst=to)


def _receive(tensor: Tensor, source: int) -> Tensor:
    torch.distributed.recv(tensor, src=source)
    return tensor
