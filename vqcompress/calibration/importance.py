"""How much each layer's error moves the denoiser's output.

For a small error ``δ`` in a layer's output the denoiser's output moves by ``J δ``. With a random direction ``v`` of
unit variance, ``E |Jᵀ v|²`` is the squared Frobenius norm of ``J`` (Hutchinson's estimator), and one backward pass
gives it for all layers at once. No weight gradients are kept, so this costs about two forward passes per recorded call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.backward_projection import Watch, backward_projection, frozen
from vqcompress.denoiser_calls.call import first_output
from vqcompress.placement import execution_device
from vqcompress.progress import StageProgress
from vqcompress.tensor_tree import to_device

Use = Callable[[str, Tensor], None]
"""``(layer, gradients [samples, outputs])`` of a random projection of the denoiser's output in one call."""


def layer_importance(
    denoiser: nn.Module,
    layers: Sequence[str],
    calls: Sequence[dict[str, Any]],
    seed: int,
    progress: StageProgress | None = None,
) -> dict[str, float]:
    """Relative squared error of the denoiser's output per squared error of each layer's output.

    ``calls`` are keyword arguments of recorded denoiser calls. The result maps a layer to the expected value of
    ``|δ out|² / |out|²`` for a white error with ``E |δ|² = 1`` in each sample of the layer's output, averaged over the
    calls. Layers that did not run, or whose output nothing reads, get 0.
    """
    totals = dict.fromkeys(layers, 0.0)

    def add(name: str, gradients: Tensor) -> None:
        totals[name] += float(gradients.double().square().sum()) / gradients.shape[1] / len(calls)

    backward_projections(denoiser, layers, calls, seed, add, progress)
    return totals


def backward_projections(
    denoiser: nn.Module,
    layers: Iterable[str],
    calls: Sequence[dict[str, Any]],
    seed: int,
    use: Use,
    progress: StageProgress | None = None,
) -> None:
    """Send a random projection of every call's output back through the denoiser.

    ``use`` is given the gradients that reach the outputs of ``layers``. The denoiser's output counts relative to its
    norm, unless that is zero. Which directions are drawn does not depend on ``layers``.
    """
    generator, device = torch.Generator().manual_seed(seed), execution_device(denoiser)
    watches: dict[str, Watch] = {name: lambda layer, arguments, name=name: partial(use, name) for name in layers}  # type: ignore[misc]

    def project(call: dict[str, Any]) -> Tensor:
        out = first_output(denoiser(**with_gradients(to_device(call, device))))
        direction = torch.randn(out.shape, generator=generator).to(out)
        norm = out.detach().norm()
        return (out * direction).sum() / torch.where(norm > 0, norm, 1.0)

    with frozen(denoiser):
        for index, call in enumerate(calls):
            backward_projection(denoiser, watches, partial(project, call))
            if progress:
                progress(index + 1, len(calls), "")


def with_gradients(value: Any) -> Any:
    """The call with every floating tensor made a fresh leaf that requires gradients."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, dict):
        return {key: with_gradients(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_gradients(item) for item in value)
    return value
