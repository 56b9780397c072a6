"""The processes that work together: one, or as many as `torchrun` or `accelerate launch` started."""

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

PATIENCE = timedelta(hours=12)  # the others wait while the first process records the teacher


@dataclass(frozen=True)
class Workers:
    """``rank`` of ``world`` processes; ``reduce`` adds tensors up over all of them in place, ``wait`` until all are here.

    ``tell`` gives every process everybody's value, by rank; ``send`` and ``receive`` move one tensor (into the given one).
    """

    rank: int = 0
    world: int = 1
    reduce: Callable[[Sequence[Tensor]], None] = lambda tensors: None
    wait: Callable[[], None] = lambda: None
    tell: Callable[[Any], list[Any]] = lambda value: [value]
    send: Callable[[Tensor, int], None] = lambda tensor, to: None
    receive: Callable[[Tensor, int], Tensor] = lambda tensor, source: tensor

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0


def expected_workers() -> int:
    """How many processes were started together, by the environment that `torchrun` sets."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def workers_here() -> int:
    """How many of them share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_of_all() -> bool:
    """Whether this is the process that reports, known before any has joined."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined_workers() -> Iterator[Workers]:
    """This process's part, by the environment that `torchrun` sets; on the CPU they talk through gloo."""
    if expected_workers() < 2:
        yield Workers()
        return
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs

    state = PartialState(cpu=not torch.cuda.is_available(), **InitProcessGroupKwargs(timeout=PATIENCE).to_kwargs())
    try:
        talk = (_sum_over_processes, state.wait_for_everyone, _tell, _send, _receive)
        yield Workers(state.process_index, state.num_processes, *map(_with_all_present, talk))
    finally:
        state.destroy_process_group()


def _with_all_present(talk: Callable[..., Any]) -> Callable[..., Any]:
    """``talk``, which says in a sentence when somebody it needs has left."""

    def talk_or_say(*arguments: Any) -> Any:
        try:
            return talk(*arguments)
        except RuntimeError as error:
            raise VQCompressError(
                "another process of this job has ended, so this one stops too; its own message is above. Finished work is kept: run the "
                "same command again"
            ) from error

    return talk_or_say


def _sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """One message for all tensors of a dtype."""
    from accelerate.utils import reduce

    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        members = [tensor for tensor in tensors if tensor.dtype == dtype]
        total = reduce(torch.cat([tensor.detach().flatten() for tensor in members]), reduction="sum")
        for tensor, part in zip(members, total.split([tensor.numel() for tensor in members]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def _tell(value: Any) -> list[Any]:
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, value)
    return told


def _send(tensor: Tensor, to: int) -> None:
    torch.distributed.send(tensor.contiguous(), dst=to)


def _receive(tensor: Tensor, source: int) -> Tensor:
    torch.distributed.recv(tensor, src=source)
    return tensor
