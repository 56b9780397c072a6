"""Tensors nested in dicts, lists and tuples, as the arguments of a denoiser call are."""

from __future__ import annotations

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
