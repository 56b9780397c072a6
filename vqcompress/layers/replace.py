"""Replacing single layers of a component: find the dense layer, make a packed one, replace every reference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.formats import FormatSpec
from vqcompress.layers.packed import VQConv2d, VQLinear
from vqcompress.layers.shared_codebooks import SHARED_NAME, SharedCodebooks
from vqcompress.matrix_view import is_quantizable


def submodule(component: nn.Module, name: str) -> nn.Module:
    """The module of that name. Raises `KeyError` if there is none.

    ``get_submodule`` calls the model's ``__getattr__`` three times per level, which is too slow for loading.
    """
    module = component
    for part in name.split("."):
        module = module._modules[part]  # type: ignore[assignment]
    return module


def find_layer(component: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Module:
    """The dense layer of that name, with a weight of ``shape``. Raises `ArchitectureError` if there is none."""
    try:
        layer = submodule(component, name)
    except (KeyError, AttributeError):
        raise ArchitectureError(
            f"{type(component).__name__} has no layer {name!r}; the packed weights belong to another model, or the "
            "library that defines it has renamed its layers since"
        ) from None
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear) or not is_quantizable(layer):
        raise ArchitectureError(
            f"layer {name!r} is a {type(layer).__name__}, which cannot hold packed codes; keep it dense"
        )
    if tuple(layer.weight.shape) != tuple(shape):
        raise ArchitectureError(
            f"layer {name!r} has a weight of shape {tuple(layer.weight.shape)}, its packed form stands for "
            f"{tuple(shape)}; the packed weights belong to a model of another size"
        )
    return layer


def packed_layer(
    component: nn.Module,
    name: str,
    spec: FormatSpec,
    shape: tuple[int, ...],
    tensors: Mapping[str, Tensor],
) -> tuple[nn.Module, nn.Module]:
    """The dense layer ``name`` of ``component`` and the packed layer that replaces it, for `put_layers`.

    The dense weight must have ``shape``. For a spec with a shared codebook, the component's `SharedCodebooks` must be
    registered already.
    """
    dense = find_layer(component, name, shape)
    packed = VQConv2d if isinstance(dense, nn.Conv2d) else VQLinear
    return dense, packed(dense, spec, tensors, _shared(component, spec))


def pack_in_place(
    component: nn.Module, name: str, spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor]
) -> None:
    """Convert the dense layer object ``name`` itself to a packed layer. Arguments as for `packed_layer`.

    For a model that a loader has just built: hooks and attributes added to the dense layer would remain.
    """
    layer, shared = find_layer(component, name, shape), _shared(component, spec)
    layer.__class__ = VQConv2d if isinstance(layer, nn.Conv2d) else VQLinear
    layer._hold(spec, shape, tensors, layer._parameters["bias"], shared)  # type: ignore[operator]


def put_layers(component: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace every reference to an old layer in ``component`` by the new one: blocks can share a layer.

    One pass over the modules replaces all layers. A pass for each layer took most of the time of loading a packed
    model.
    """
    for parent in list(component.modules()):
        for child, module in list(parent._modules.items()):
            if module in replacements:
                setattr(parent, child, replacements[module])


def _shared(component: nn.Module, spec: FormatSpec) -> SharedCodebooks | None:
    return None if spec.codebook is None else submodule(component, SHARED_NAME)  # type: ignore[return-value]
