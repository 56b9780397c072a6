"""Tensors nested in dicts, lists and tuples, as the arguments of a denoiser call are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def to_device(value: Any, device: torch.device | str, *, copy: bool = False) -> Any:
    """``value`` with every tensor in nested dicts, lists and tuples detached and on ``device``; the rest is passed
    through.

    With ``copy`` tensors that are there already are copied as well. Tuples must be plain ones, not named tuples.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=copy)
    if isinstance(value, dict):
        return {key: to_device(item, device, copy=copy) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device, copy=copy) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists, tuples and output classes (which are dicts), in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
