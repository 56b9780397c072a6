"""A component built from its config alone, without weights: do the packed layers belong to it?"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from accelerate import init_empty_weights
from torch import nn

from vqcompress.checkpoint.component_files import ComponentFiles
from vqcompress.layers import empty_layers


def packed_skeleton(part: ComponentFiles) -> nn.Module | None:
    """The component on the meta device with empty packed layers; ``None`` for a library that is not diffusers.

    Raises `ArchitectureError` when a packed layer is not in the model that the config describes, or of another shape.
    """
    if part.library != "diffusers" or part.description is None:
        return None
    kind: Any = getattr(import_module("diffusers"), part.class_name, None)
    if kind is None:
        return None
    config = {key: value for key, value in part.config.items() if key != "quantization_config"}
    with init_empty_weights():
        model = kind.from_config(config)
    empty_layers(model, part.description)
    return model
