"""Run a denoiser up to the end of one of its blocks, and let two denoisers share their tensors."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


class _Reached(Exception):
    """The denoiser has run far enough."""


def run_through_block(
    block: str, denoiser: nn.Module, kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Call ``denoiser(**kwargs)``, but stop after ``block``: that block's arguments, keyword arguments and output.

    Raises `IndexError` when the call does not reach the block.
    """
    found: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        found.append((args, options, output))
        raise _Reached

    handle = denoiser.get_submodule(block).register_forward_hook(note, with_kwargs=True)
    try:
        denoiser(**kwargs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def weight_sharing_copy(denoiser: nn.Module) -> nn.Module:
    """The same modules over the same tensors: layers can be replaced in one without the other."""
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    return copy.deepcopy(denoiser, {id(tensor): tensor for tensor in tensors})
