"""Packed layers in the place of dense ones, in a component as it stands."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.layers.description import describe, write_description
from vqcompress.layers.guards import refuse_fusing
from vqcompress.layers.packed import PackedLayer
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
    """Replace each named layer of ``component`` by a packed one, in place; tensors go to the layer's device.

    ``dense`` and ``ignored`` go into the description: layers that stay as they are, and why. The bytes of ``dense`` ones are
    part of what the bits of a weight are counted from, ``ignored`` ones were never asked to shrink.
    The component's config then says how it is packed, so ``save_pretrained`` writes a folder that loads again.
    Raises `ArchitectureError` for a name or shape that is not there; the component is then left as it was.
    """
    for name, weight in quantized.items():
        find_layer(component, name, weight.shape)
    _share(component, quantized)
    for name, weight in quantized.items():
        device = _device(component, name, weight)
        tensors = {key: tensor.detach().to(device) for key, tensor in weight.tensors.items()}
        # One by one, so that dense weights go as packed ones arrive on the device.
        put_layers(component, dict([packed_layer(component, name, weight.spec, weight.shape, tensors)]))
    write_description(component, describe(component, dense, ignored))
    refuse_fusing(component)


def vq_layers(component: nn.Module) -> dict[str, PackedLayer]:
    """The packed layers of ``component`` by name, in module order."""
    return {name: module for name, module in component.named_modules() if isinstance(module, PackedLayer)}


def _device(component: nn.Module, name: str, weight: QuantizedWeight) -> torch.device:
    """Where the layer is; a skeleton on the meta device takes the packed weights where they are."""
    device = find_layer(component, name, weight.shape).weight.device
    return weight.tensors["weight"].device if device.type == "meta" else device


def _share(component: nn.Module, quantized: Mapping[str, QuantizedWeight]) -> None:
    books = _shared_codebooks(quantized)
    if not books:
        return
    first = next(name for name, weight in quantized.items() if weight.shared)
    device = _device(component, first, quantized[first])
    books = {name: book.to(device) for name, book in books.items()}
    if (present := getattr(component, SHARED_NAME, None)) is not None:
        for name, book in books.items():
            present.register_parameter(name, nn.Parameter(book, requires_grad=False))
    else:
        component.add_module(SHARED_NAME, SharedCodebooks(books))


def _shared_codebooks(quantized: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    books: dict[str, Tensor] = {}
    for layer, weight in quantized.items():
        if (name := weight.spec.codebook) is None:
            continue
        book = weight.shared["codebooks"].detach()
        if name in books and not torch.equal(books[name], book):
            raise ArchitectureError(
                f"layer {layer!r} brings other values for the shared codebook {name!r} than the layers before it; "
                "layers that name one codebook must have been encoded with it"
            )
        books[name] = book
    return books
