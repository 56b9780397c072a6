"""Names of layers in a description, as the installed version of transformers has them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import nn

LEVEL = "text_model."
"""A level of CLIP's text model, which transformers 5 removed."""


def fit_names(model: nn.Module, description: Mapping[str, Any]) -> dict[str, Any]:
    """``description`` with the layer names of ``model``.

    transformers renames weights on loading; the layer names in the description must be renamed too.
    """
    names = dict(model.named_modules())
    layers = {fitting_name(name, names): entry for name, entry in description["layers"].items()}
    return {**description, "layers": layers}


def fitting_name(name: str, names: Container[str]) -> str:
    """The one of ``names`` that ``name`` stands for, with or without `LEVEL`; ``name`` itself where there is none."""
    candidates = (name, name.removeprefix(LEVEL), f"{LEVEL}{name}")
    return next((candidate for candidate in candidates if candidate in names), name)
