"""A denoiser call as flat named tensors, cut into samples and put together again.

A sample is one prompt at one step, with all its guidance branches. Pipelines stack branches: a call for P prompts has
a batch of ``branches * P``, branch by branch, in every tensor that has a batch dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vqcompress.errors import CalibrationError

TIMES = ("timestep", "t")


def flatten(kwargs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts, lists and tuples -> ``{"added_cond_kwargs/text_embeds": tensor, "states/#0": …}``."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        if isinstance(value, list | tuple):
            value = {f"#{index}": item for index, item in enumerate(value)}
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten` (tuples come back as lists)."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return {key: _lists(value) for key, value in nested.items()}


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.startswith("#") for key in value):
        return [_lists(value[f"#{index}"]) for index in range(len(value))]
    return {key: _lists(item) for key, item in value.items()}


def spread_timestep(flat: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """With a timestep for every entry of the batch, so that samples of different timesteps can share a call."""
    return {
        name: torch.as_tensor(value).reshape(-1).expand(batch_size).clone()
        if name in TIMES and torch.as_tensor(value).numel() == 1
        else value
        for name, value in flat.items()
    }


def take_samples(flat: Mapping[str, Any], samples: Sequence[int], prompts: int, batch_size: int) -> dict[str, Any]:
    """``samples`` (indices below ``prompts``) of all tensors with ``batch_size`` entries, branch by branch."""
    branches = range(batch_size // prompts)
    chosen = torch.tensor([branch * prompts + sample for branch in branches for sample in samples])
    return {name: value[chosen] if _has_batch(value, batch_size) else value for name, value in flat.items()}


def join(parts: Sequence[Mapping[str, Any]], batch_sizes: Sequence[int], branches: int) -> dict[str, Any]:
    """Several calls as one; ``parts[i]`` has ``batch_sizes[i]`` entries. Raises `CalibrationError` when they do not
    fit."""
    joined = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if all(_has_batch(value, size) for value, size in zip(values, batch_sizes, strict=True)):
            cut = [value.unflatten(0, (branches, -1)) for value in values]
            joined[name] = torch.cat(cut, 1).flatten(0, 1)
        elif all(_same(value, first) for value in values):
            joined[name] = first
        else:
            raise CalibrationError(
                f"the denoiser's argument {name!r} differs between recorded calls and has no batch to join them along; "
                "train with batches that come from one call (batch_size=1)"
            )
    return joined


def _has_batch(value: Any, batch_size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch_size


def _same(value: Any, other: Any) -> bool:
    return torch.equal(value, other) if isinstance(value, Tensor) and isinstance(other, Tensor) else value == other
