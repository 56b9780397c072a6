"""One call of a denoiser as plain data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.errors import CalibrationError


def call_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, positional ones included; what is None is left out."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return {name: value for name, value in bound.items() if value is not None}


def first_output(output: Any) -> Tensor:
    """The tensor that a denoiser returned, bare, in a tuple, or in an output class; a list with a tensor for each entry
    of the batch (Z-Image) is stacked."""
    first = output if isinstance(output, Tensor) else output[0]
    return torch.stack(list(first)) if isinstance(first, list | tuple) else first


def timestep_of(arguments: dict[str, Any]) -> Tensor:
    """The call's timestep as float32 on the CPU, one value or one per sample; NaN where the denoiser takes none."""
    value = arguments.get("timestep", arguments.get("t", float("nan")))
    return torch.as_tensor(value).detach().to("cpu", torch.float32, copy=True)


def check_latents(denoiser: str, number: int, arguments: dict[str, Any]) -> None:
    """Raise `CalibrationError` if the sampler gives call ``number`` (from 1) of ``denoiser`` latents that are not
    finite: what the denoiser makes of them is not its own error."""
    latents = next((value for value in arguments.values() if isinstance(value, Tensor)), None)
    if latents is None or not latents.is_floating_point() or bool(torch.isfinite(latents).all()):
        return
    time = timestep_of(arguments).flatten()[0]
    raise CalibrationError(
        f"the latents became infinite or NaN before call {number} of {denoiser} (timestep {float(time):g}): the "
        "scheduler diverges on this model; check its configuration against the model's, and that its images are not "
        "black"
    )
