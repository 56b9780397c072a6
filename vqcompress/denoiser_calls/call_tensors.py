"""A denoiser call as flat named tensors, cut into units and put together again.

A unit is one prompt at one step with all its guidance branches. Pipelines stack branches: a call for P prompts holds
``branches * P`` rows, branch by branch, in every tensor that has a batch.
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


def spread_timestep(flat: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """With a timestep for every row, so that units of different timesteps can share a batch."""
    return {
        name: torch.as_tensor(value).reshape(-1).expand(rows).clone()
        if name in TIMES and torch.as_tensor(value).numel() == 1
        else value
        for name, value in flat.items()
    }


def take_units(flat: Mapping[str, Any], units: Sequence[int], prompts: int, rows: int) -> dict[str, Any]:
    """The rows of ``units`` (indices below ``prompts``) in all tensors with ``rows`` rows, branch by branch."""
    chosen = torch.tensor([branch * prompts + unit for branch in range(rows // prompts) for unit in units])
    return {name: value[chosen] if _has_rows(value, rows) else value for name, value in flat.items()}


def join(parts: Sequence[Mapping[str, Any]], rows: Sequence[int], branches: int) -> dict[str, Any]:
    """Several calls as one; ``rows[i]`` is the batch of ``parts[i]``. Raises `CalibrationError` when they do not
    fit."""
    joined = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if all(_has_rows(value, count) for value, count in zip(values, rows, strict=True)):
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


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows


def _same(value: Any, other: Any) -> bool:
    return torch.equal(value, other) if isinstance(value, Tensor) and isinstance(other, Tensor) else value == other
