"""How a loaded tensor takes its place in a module."""

from __future__ import annotations

from torch import Tensor, nn

from vqcompress.layers.replace import submodule


def place(model: nn.Module, name: str, value: Tensor) -> None:
    """Make ``value`` the parameter or buffer ``name`` of ``model``; a new parameter is trainable if the old one is.

    Codes and other integers become frozen parameters.
    """
    path, _, key = name.rpartition(".")
    module = submodule(model, path) if path else model
    if key in module._buffers:
        module._buffers[key] = value
        return
    old = module._parameters[key]
    trainable = old is not None and old.requires_grad and value.is_floating_point()
    # Past nn.Module.register_parameter: its checks are for new names, and loading cannot afford them.
    module._parameters[key] = nn.Parameter(value, requires_grad=trainable)
