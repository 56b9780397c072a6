"""Viterbi search in plain torch, on any device: slow, short, and what the compiled searches are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def search_states(target: Tensor, scale: Tensor, table: Tensor, rate: int, boundary: int = -1) -> Tensor:
    """States ``[n]`` (int64) of the path that minimises ``sum (target - scale * table[state])**2``.

    ``target, scale [n]`` and ``table [2**L]`` are floating point; a weight shifts ``rate`` bits into the state.
    ``boundary`` fixes the ``L - rate`` bits before the first weight and after the last (a circular stream); -1 leaves
    both ends free.
    """
    groups = len(table) >> rate
    best = torch.zeros(groups, device=table.device, dtype=table.dtype)
    if boundary >= 0:
        best.fill_(float("inf"))[boundary] = 0
    branches = []
    for x, r in zip(target, scale, strict=True):
        cost = best.repeat_interleave(1 << rate) + (x - r * table).square()
        best, branch = cost.view(1 << rate, groups).min(0)
        branches.append(branch)
    group = boundary if boundary >= 0 else int(best.argmin())
    states = []
    for branch in reversed(branches):
        states.append(int(branch[group]) * groups + group)
        group = states[-1] >> rate
    return torch.tensor(states[::-1], device=table.device)
