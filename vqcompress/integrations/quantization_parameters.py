"""The packed tensors of a component in memory, and how float16 ones pass through a loader that casts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqcompress.errors import CheckpointError
from vqcompress.layers import SHARED_NAME, SharedCodebooks, vq_layers
from vqcompress.matrix_view import matrix_shape


def packed_keys(component: nn.Module) -> set[str]:
    """State-dict keys of all tensors of packed layers (biases included) and of shared codebooks."""
    modules = dict(vq_layers(component))
    if (shared := getattr(component, SHARED_NAME, None)) is not None:
        modules[SHARED_NAME] = shared
    return {f"{name}.{key}" for name, module in modules.items() for key in module.state_dict()}


def to_bits(state: dict[str, Tensor], float16_keys: set[str]) -> dict[str, Tensor]:
    """``state`` with the tensors ``float16_keys``, all float16, as int16 bits."""
    return {key: tensor.view(torch.int16) if key in float16_keys else tensor for key, tensor in state.items()}


def from_bits(state: dict[str, Tensor], float16_keys: set[str]) -> dict[str, Tensor]:
    """The inverse of `to_bits`; tensors that are not int16 are unchanged."""
    return {
        key: tensor.view(torch.float16) if key in float16_keys and tensor.dtype == torch.int16 else tensor
        for key, tensor in state.items()
    }


def finalize(component: nn.Module) -> None:
    """After loading, freeze every packed tensor in memory, in its stored dtype. Offloaded tensors are not changed.

    Loaders that keep some modules in float32, such as T5's ``wo``, cast codes with them. That cast is lossless and is
    undone here.
    """
    for layer in vq_layers(component).values():
        shapes = layer.spec.tensor_shapes(*matrix_shape(layer.dense_shape))
        _finalize_module(layer, {name: dtype for name, (_, dtype) in shapes.items()})
    for module in component.children():
        if isinstance(module, SharedCodebooks):
            _finalize_module(module, {name: torch.float16 for name, _ in module.named_parameters()})


def _finalize_module(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, dtype in dtypes.items():
        parameter = module.get_parameter(name)
        if parameter.device.type != "meta" and (parameter.dtype != dtype or parameter.requires_grad):
            setattr(module, name, nn.Parameter(restored(parameter.data, dtype), requires_grad=False))


def restored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a packed tensor back to its stored dtype, from int16 bits or from a lossless cast by the loader."""
    is_bits = tensor.dtype == torch.int16 and dtype == torch.float16
    return tensor.view(dtype) if is_bits else tensor.to(dtype)


def refuse_missing(missing: set[str], where: str) -> None:
    """Raise `CheckpointError` if tensors of packed layers are missing from the files."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of packed layers are missing from the weight files ({some}, …); the "
            "model would run on random weights. Copy or download the folder again; `vqcompress verify` says which "
            "file differs"
        )
