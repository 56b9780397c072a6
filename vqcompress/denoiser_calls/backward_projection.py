"""A random projection of a denoiser's output, sent backwards: what each layer reads, and what errors of its outputs
cost.

Let ``J`` be the Jacobian of the denoiser's output with respect to a layer's outputs, and ``v`` a random direction
with unit variance. The gradient ``g = Jᵀ v`` of the projection ``vᵀ output`` has the second moment ``Jᵀ J``
(Hutchinson's estimator): ``δᵀ E[g gᵀ] δ`` is the squared error of the denoiser's output that an error ``δ`` of the
layer's outputs causes, to first order. One backward pass gives ``g`` for all layers at once, and no gradient of any
weight is kept.

Of a large denoiser's activations only those between blocks are kept, and each block runs again on the way back
(gradient checkpointing: Chen et al. 2016, arXiv 1604.06174). For SDXL's UNet, a call with guidance at 1024 pixels in
float32, that is 2 GB in place of 21 (computed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from vqcompress.denoiser_calls.blocks import find_blocks
from vqcompress.placement import saved_on_host
from vqcompress.working_memory import return_freed_memory

LARGE = 100_000_000
"""Weights of a denoiser from which on its blocks run again: smaller ones have room, and take half as long again."""

Watch = Callable[[nn.Module, tuple[Any, ...]], Callable[[Tensor], None]]
"""``(layer, arguments)``, when the layer has run, with the positional arguments of that call; returns what is to be
called with the projection's gradients ``[samples, outputs]`` with respect to the layer's output. A sample is a token
or a pixel. It is called again when a block runs again, and what it returns then is dropped."""


def backward_projection(denoiser: nn.Module, watches: Mapping[str, Watch], project: Callable[[], Tensor]) -> None:
    """Send what ``project`` returns backwards through ``denoiser``, and show each layer's gradients to its entry in
    ``watches``.

    ``project`` calls the denoiser and returns a scalar with a graph. Nothing is shown of layers that it does not
    depend on.
    """
    with ExitStack() as hooks, torch.enable_grad():
        hooks.enter_context(saved_on_host(denoiser))
        hooks.enter_context(recomputing(denoiser, list(watches)))
        for name, watch in watches.items():
            hooks.callback(denoiser.get_submodule(name).register_forward_hook(_hook(watch), with_kwargs=True).remove)
        project().backward()


@contextmanager
def recomputing(denoiser: nn.Module, layers: list[str]) -> Iterator[None]:
    """With blocks of several ``layers`` that keep their inputs alone, and run again in a backward pass, if it is large.

    Gradients are the same bit for bit. A block is called as a whole again, hooks included: those that bring its weights
    to a device have to run, too, and those that take them away, so a block always runs to its end.
    """
    large = sum(parameter.numel() for parameter in denoiser.parameters()) >= LARGE
    names = find_blocks(denoiser, layers, finest=True) if large else ()
    blocks = [denoiser.get_submodule(name) for name in names if name not in layers]
    for block in blocks:
        call = partial(_tidily, block._call_impl)
        block._call_impl = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
    try:
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for block in blocks:
            del block._call_impl


def _tidily(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """``call``, then what it has freed goes back to the system: kept inputs lie between pieces of it, and on a CPU
    three quarters of the memory were such pieces."""
    output = call(*arguments, **options)
    return_freed_memory()
    return output


@contextmanager
def frozen(denoiser: nn.Module) -> Iterator[None]:
    """With no parameter of ``denoiser`` requiring gradients: only those of outputs are wanted."""
    learning = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _hook(watch: Watch) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]:
    def hook(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> Tensor:
        if (
            not output.requires_grad
        ):  # it depends on timestep and label alone, as modulation of class-conditional models
            output = output.detach().requires_grad_()
        use = watch(layer, arguments or (options["input"],))

        def gradient_hook(gradient: Tensor) -> None:
            gradient = gradient.movedim(1, -1) if isinstance(layer, nn.Conv2d) else gradient
            use(gradient.reshape(-1, gradient.shape[-1]))

        output.register_hook(gradient_hook)
        return output

    return hook
