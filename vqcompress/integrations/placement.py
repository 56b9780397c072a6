"""How a loaded tensor takes its place in a module."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def place(module: nn.Module, key: str, value: Tensor) -> None:
    """Make ``value`` the parameter or buffer ``key`` of ``module`` itself; a new parameter is trainable if the old one is.

    Codes and other integers become frozen parameters.
    """
    if key in module._buffers:
        module._buffers[key] = value
        return
    old = module._parameters[key]
    trainable = old is not None and old.requires_grad and value.is_floating_point()
    # Past nn.Module.register_parameter: its checks are for new names, and loading cannot afford them.
    module._parameters[key] = nn.Parameter(value, requires_grad=trainable)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """No search for garbage meanwhile: thousands of small objects are made, and all of them stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
