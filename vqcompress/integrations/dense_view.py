"""A packed layer as an adapter sees it: the same layer, with a dense ``weight``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from vqcompress.errors import UnsupportedError
from vqcompress.layers import PackedLayer, VQConv2d, VQLinear
from vqcompress.layers.guards import MERGE_REFUSED


class DenseView:
    """What views of both kinds have. ``weight`` is decoded at each access."""

    __slots__ = ("packed",)
    packed: PackedLayer

    # A property comes before the parameter of that name, which nn.Module finds last.
    @property
    def weight(self) -> Tensor:
        return self.packed.dense_weight(dense_dtype(self.packed)).requires_grad_(False)

    @weight.setter
    def weight(self, value: Any) -> None:
        raise UnsupportedError(MERGE_REFUSED)


class _LinearView(DenseView, VQLinear):
    pass


class _Conv2dView(DenseView, VQConv2d):
    pass


def dense_view(layer: PackedLayer) -> PackedLayer:
    """``layer`` with a dense ``weight``. A view shares all else with ``layer``, and its forward is the packed one.

    A view never becomes part of a network: where it is registered as a submodule, the layer itself is.
    """
    view: Any = object.__new__(_Conv2dView if isinstance(layer, VQConv2d) else _LinearView)
    object.__setattr__(view, "__dict__", layer.__dict__)
    object.__setattr__(view, "packed", layer)
    return view


def dense_dtype(layer: PackedLayer) -> torch.dtype:
    """The dtype of the layer's bias, or float32 without one."""
    return torch.float32 if layer.bias is None else layer.bias.dtype


def _packed_instead(parent: nn.Module, name: str, child: nn.Module | None) -> nn.Module | None:
    return child.packed if isinstance(child, DenseView) else None


register_module_module_registration_hook(_packed_instead)  # type: ignore[arg-type]
