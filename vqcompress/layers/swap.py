"""Replacing dense layers by packed ones in a component, in place, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.expert_stacks import restack, unstack
from vqcompress.layers.description import describe, write_description
from vqcompress.layers.guards import allow_fusing, refuse_fusing
from vqcompress.layers.packed import CONV2D_GEOMETRY, LINEAR_GEOMETRY, PackedLayer, VQConv2d
from vqcompress.layers.replace import find_layer, packed_layer, put_layers
from vqcompress.layers.shared_codebooks import SHARED_NAME, SharedCodebooks
from vqcompress.quantized_weight import QuantizedWeight


def swap(
    component: nn.Module,
    quantized: Mapping[str, QuantizedWeight],
    *,
    dense: Mapping[str, str] | None = None,
    ignored: Mapping[str, str] | None = None,
) -> None:
    """Replace each named layer of ``component`` by a packed one, in place. Tensors are moved to the layer's device.

    ``dense`` and ``ignored`` are written to the description: layers that stay dense, with the reason. The bytes of
    ``dense`` layers count towards the bits per weight; ``ignored`` layers were not to be quantized. The component's
    config then describes the packing, so ``save_pretrained`` writes a folder that can be loaded again.

    Raises `ArchitectureError` if a layer is missing or has another shape. The component is then unchanged.
    """
    unstack(component, quantized)
    for name, weight in quantized.items():
        find_layer(component, name, weight.shape)
    _share(component, quantized)
    for name, weight in quantized.items():
        device = _device(component, name, weight)
        tensors = {key: tensor.detach().to(device) for key, tensor in weight.tensors.items()}
        # One by one, so that each dense weight is freed before the next packed one is moved to the device.
        put_layers(component, dict([packed_layer(component, name, weight.spec, weight.shape, tensors)]))
    restack(component)
    write_description(component, describe(component, dense, ignored))
    refuse_fusing(component)


def vq_layers(component: nn.Module) -> dict[str, PackedLayer]:
    """The packed layers of ``component`` by name, in module order."""
    return {name: module for name, module in component.named_modules() if isinstance(module, PackedLayer)}


def make_dense(component: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace every packed layer by its dense layer, in place, and remove the description from the config."""
    packed = [module for module in component.modules() if isinstance(module, PackedLayer)]
    put_layers(component, {layer: dense_layer(layer, layer.dense_weight(dtype).contiguous()) for layer in packed})
    if hasattr(component, SHARED_NAME):
        delattr(component, SHARED_NAME)
    restack(component)
    write_description(component, None)
    allow_fusing(component)


def dense_layer(layer: PackedLayer, weight: Tensor) -> nn.Module:
    """A dense layer with the geometry of ``layer`` and ``weight [dense_shape]``. The bias gets the weight's dtype."""
    with torch.device("meta"):
        dense = nn.Conv2d(1, 1, 1) if isinstance(layer, VQConv2d) else nn.Linear(1, 1)
    for name in CONV2D_GEOMETRY if isinstance(layer, VQConv2d) else LINEAR_GEOMETRY:
        setattr(dense, name, getattr(layer, name))
    dense.weight = nn.Parameter(weight, requires_grad=False)
    dense.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias.to(weight.dtype), requires_grad=False)
    return dense.train(layer.training)


def _device(component: nn.Module, name: str, weight: QuantizedWeight) -> torch.device:
    """The layer's device. If that is the meta device, the device of the packed weight."""
    device = find_layer(component, name, weight.shape).weight.device
    return weight.tensors["weight"].device if device.type == "meta" else device


def _share(component: nn.Module, quantized: Mapping[str, QuantizedWeight]) -> None:
    codebooks = _shared_codebooks(quantized)
    if not codebooks:
        return
    first = next(name for name, weight in quantized.items() if weight.shared)
    device = _device(component, first, quantized[first])
    codebooks = {name: codebook.to(device) for name, codebook in codebooks.items()}
    if (present := getattr(component, SHARED_NAME, None)) is not None:
        for name, codebook in codebooks.items():
            present.register_parameter(name, nn.Parameter(codebook, requires_grad=False))
    else:
        component.add_module(SHARED_NAME, SharedCodebooks(codebooks))


def _shared_codebooks(quantized: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    codebooks: dict[str, Tensor] = {}
    for layer, weight in quantized.items():
        if (name := weight.spec.codebook) is None:
            continue
        codebook = weight.shared["codebooks"].detach()
        if name in codebooks and not torch.equal(codebooks[name], codebook):
            raise ArchitectureError(
                f"layer {layer!r} brings other values for the shared codebook {name!r} than the layers before it; "
                "layers that name one codebook must have been encoded with it"
            )
        codebooks[name] = codebook
    return codebooks
