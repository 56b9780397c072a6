"""Prompts for training and for early stopping, disjoint from each other and from those that calibration used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vqcompress.errors import CalibrationError


@dataclass(frozen=True)
class PromptSplit:
    """``train`` prompts teach, ``held_out`` prompts decide when to stop and which state to keep."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split_prompts(
    prompts: Sequence[str], calibration: Sequence[str], train: int, held_out: int, seed: int
) -> PromptSplit:
    """At most ``train`` prompts for training and ``held_out`` for stopping, drawn by ``seed`` from what calibration left.

    When fewer are left, both shrink in proportion. Raises `CalibrationError` when fewer than two are left.
    """
    used = set(calibration)
    free = [prompt for prompt in dict.fromkeys(prompts) if prompt not in used]
    if len(free) < 2:
        raise CalibrationError(
            f"{len(free)} of {len(set(prompts))} prompts are left for fine-tuning after calibration took {len(used)}; give a "
            "larger prompt set (--prompts) or calibrate on fewer (--count)"
        )
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    share = min(1.0, len(free) / (train + held_out))
    stop = max(1, int(held_out * share))
    shuffled = [free[index] for index in order]
    return PromptSplit(tuple(shuffled[stop : stop + max(1, int(train * share))]), tuple(shuffled[:stop]))
