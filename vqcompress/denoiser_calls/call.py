"""One call of a denoiser as plain data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def call_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, positional ones included; what is None is left out."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return {name: value for name, value in bound.items() if value is not None}


def first_output(output: Any) -> Tensor:
    """The tensor that a denoiser returned, bare, in a tuple, or in an output class."""
    return output if isinstance(output, Tensor) else output[0]


def timestep_of(arguments: dict[str, Any]) -> Tensor:
    """The call's timestep as float32 on the CPU, one value or one per sample; NaN where the denoiser takes none."""
    value = arguments.get("timestep", arguments.get("t", float("nan")))
    return torch.as_tensor(value).detach().to("cpu", torch.float32, copy=True)
