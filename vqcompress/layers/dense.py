"""Dense layers back in the place of packed ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqcompress.layers.conv2d import GEOMETRY, VQConv2d
from vqcompress.layers.description import write_description
from vqcompress.layers.guards import allow_fusing
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.replace import put_layers
from vqcompress.layers.shared_codebooks import SHARED_NAME


def make_dense(component: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace every packed layer by the dense layer that it stands for, in place; the config forgets the packing."""
    packed = [module for module in component.modules() if isinstance(module, PackedLayer)]
    put_layers(component, {layer: dense_layer(layer, layer.dense_weight(dtype).contiguous()) for layer in packed})
    if hasattr(component, SHARED_NAME):
        delattr(component, SHARED_NAME)
    write_description(component, None)
    allow_fusing(component)


def dense_layer(layer: PackedLayer, weight: Tensor) -> nn.Module:
    """A dense layer of the geometry of ``layer`` with ``weight``, of its ``dense_shape``; the bias takes the weight's dtype."""
    with torch.device("meta"):
        dense = nn.Conv2d(1, 1, 1) if isinstance(layer, VQConv2d) else nn.Linear(1, 1)
    for name in GEOMETRY if isinstance(layer, VQConv2d) else ("in_features", "out_features"):
        setattr(dense, name, getattr(layer, name))
    dense.weight = nn.Parameter(weight, requires_grad=False)
    dense.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias.to(weight.dtype), requires_grad=False)
    return dense.train(layer.training)
