"""Replacing single layers of a component: finding a dense one, making a packed one of it, putting it in its places."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.formats import FormatSpec
from vqcompress.layers.packed import VQConv2d, VQLinear
from vqcompress.layers.shared_codebooks import SHARED_NAME, SharedCodebooks
from vqcompress.matrix_view import is_quantizable


def submodule(component: nn.Module, name: str) -> nn.Module:
    """The module of that name. Raises `KeyError` when there is none.

    ``get_submodule`` asks three times a level through whatever ``__getattr__`` the model has, which loading cannot
    afford.
    """
    module = component
    for part in name.split("."):
        module = module._modules[part]  # type: ignore[assignment]
    return module


def find_layer(component: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Module:
    """The dense layer of that name, whose weight has ``shape``. Raises `ArchitectureError` where there is none."""
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
    """The dense layer ``name`` of ``component`` and a packed one to take its place, for `put_layers`.

    The dense weight must have ``shape``. A spec with a shared codebook needs the component's `SharedCodebooks` to be
    registered before.
    """
    dense = find_layer(component, name, shape)
    packed = VQConv2d if isinstance(dense, nn.Conv2d) else VQLinear
    return dense, packed(dense, spec, tensors, _shared(component, spec))


def pack_in_place(
    component: nn.Module, name: str, spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor]
) -> None:
    """Make a packed layer of the dense layer ``name`` itself, wherever else it sits; arguments as for `packed_layer`.

    For a model that a loader has just built: hooks and attributes that somebody put on the dense layer would stay.
    """
    layer, shared = find_layer(component, name, shape), _shared(component, spec)
    layer.__class__ = VQConv2d if isinstance(layer, nn.Conv2d) else VQLinear
    layer._hold(spec, shape, tensors, layer._parameters["bias"], shared)  # type: ignore[operator]


def put_layers(component: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new layers wherever ``component`` has the old ones: blocks can share a layer.

    All in one walk over the modules: a walk for each layer was most of what loading a packed model took.
    """
    for parent in list(component.modules()):
        for child, module in list(parent._modules.items()):
            if module in replacements:
                setattr(parent, child, replacements[module])


def _shared(component: nn.Module, spec: FormatSpec) -> SharedCodebooks | None:
    return None if spec.codebook is None else submodule(component, SHARED_NAME)  # type: ignore[return-value]
