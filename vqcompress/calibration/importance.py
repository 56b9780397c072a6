"""How much each layer's error moves the denoiser's output.

For a small error ``δ`` in a layer's output the denoiser's output moves by ``J δ``. With a random direction ``v`` of unit
variance, ``E |Jᵀ v|²`` is the squared Frobenius norm of ``J`` (Hutchinson's estimator), and one backward pass gives it for all
layers at once. No weight gradients are kept, so this costs about two forward passes per recorded call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.calibration.denoiser_call import first_output

Progress = Callable[[int, int, str], None]


def layer_importance(
    denoiser: nn.Module,
    layers: Sequence[str],
    calls: Sequence[dict[str, Any]],
    seed: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Relative squared error of the denoiser's output per squared error of each layer's output.

    ``calls`` are keyword arguments of recorded denoiser calls. The result maps a layer to the expected value of
    ``|δ out|² / |out|²`` for a white error with ``E |δ|² = 1`` on each of the layer's output rows, averaged over the calls. Layers
    that did not run, or whose output goes nowhere, get 0.
    """
    totals = dict.fromkeys(layers, 0.0)
    generator = torch.Generator().manual_seed(seed)
    frozen = [p for p in denoiser.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for index, call in enumerate(calls):
            for name, squared in _squared_gradients(denoiser, layers, call, generator).items():
                totals[name] += squared / len(calls)
            if progress:
                progress(index + 1, len(calls), "")
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return totals


def _squared_gradients(
    denoiser: nn.Module, layers: Iterable[str], call: dict[str, Any], generator: torch.Generator
) -> dict[str, float]:
    found: dict[str, float] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for name in layers:
            handle = denoiser.get_submodule(name).register_forward_hook(_watch(name, found))
            hooks.callback(handle.remove)
        out = first_output(denoiser(**_with_gradients(call)))
        direction = torch.randn(out.shape, generator=generator).to(out)
        (out * direction).sum().div(out.detach().norm()).backward()
    return found


def _watch(name: str, found: dict[str, float]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]

        def add(gradient: Tensor) -> None:
            found[name] = found.get(name, 0.0) + float(gradient.double().square().sum()) / channels

        if (
            not output.requires_grad
        ):  # it follows from timesteps and labels alone, as modulation does in class-conditional models
            output = output.detach().requires_grad_()
        output.register_hook(add)
        return output

    return hook


def _with_gradients(value: Any) -> Any:
    """The call with every floating tensor made a fresh leaf that requires gradients."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, dict):
        return {key: _with_gradients(item) for key, item in value.items()}
    return value
