"""Whether a compressed folder was made from the model that it is compared with or trained against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vqcompress.component_files import ComponentFiles, component_headers, components
from vqcompress.errors import CheckpointError, VQCompressError
from vqcompress.expert_stacks import expert_shapes, stacks
from vqcompress.layers.description import layer_specs

Shape = tuple[int, ...]


def check_files(folder: Path, original: Path, model: str, advice: str) -> None:
    """Raise `VQCompressError`, which ends in ``advice``, where the weight files in the folder ``original`` of ``model``
    cannot be those of the networks that ``folder`` has packed.

    Files may have older names than networks, which libraries rename on loading. So a layer that is not found says
    nothing, but one of another shape does, and so does a network of diffusers of which none is found. Raises
    `CheckpointError` where the folder's configs cannot be read.
    """
    for part in components(folder):
        try:
            stored = {name: tensor.shape for name, tensor in component_headers(original / part.name).items()}
        except (CheckpointError, OSError):
            continue
        packed = _packed(part)
        found = {layer: stored.get(f"{layer}.weight") for layer in packed}
        known = {layer for layer, shape in found.items() if shape is not None}
        strange = [layer for layer, shape in packed.items() if layer in known and found[layer] != shape]
        if not strange and packed and stored and not known and part.library != "transformers":
            strange = list(packed)
        _refuse(strange, folder, part.name, model, advice)


def check_network(folder: Path, original: nn.Module, component: str, model: str, advice: str) -> None:
    """Raise `VQCompressError`, which ends in ``advice``, where ``original``, the ``component`` of ``model``, lacks a
    layer that ``folder`` has packed or has it in another shape, or ``folder`` has no such component.

    Raises `CheckpointError` where the folder's configs cannot be read.
    """
    part = next((part for part in components(folder) if part.name == component), None)
    if part is None:
        raise VQCompressError(
            f"{folder.name} was made from another model than {model}, which has a {component}; {advice}"
        )
    shapes = _weights(original)
    strange = [layer for layer, shape in _packed(part).items() if shapes.get(layer) != shape]
    _refuse(strange, folder, component, model, advice)


def _packed(part: ComponentFiles) -> dict[str, Shape]:
    """Dense shapes of the packed layers, by name."""
    return (
        {} if part.description is None else {name: shape for name, (_, shape) in layer_specs(part.description).items()}
    )


def _weights(network: nn.Module) -> Mapping[str, Shape]:
    """Shapes of all weights by their layers' names, those of stacked experts one by one."""
    found = {name.removesuffix(".weight"): tuple(parameter.shape) for name, parameter in network.named_parameters()}
    for name, module, key in stacks(network):
        if isinstance(stack := getattr(module, key), nn.Parameter):
            found |= {f"{name}.{number}": shape for number, shape in enumerate(expert_shapes(stack))}
    return found


def _refuse(strange: list[str], folder: Path, component: str, model: str, advice: str) -> None:
    if strange:
        raise VQCompressError(
            f"{folder.name} was made from another model than {model}, which has no layer {strange[0]} of its shape in "
            f"{component}; {advice}"
        )
