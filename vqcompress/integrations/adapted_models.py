"""diffusers' models with packed layers: saved without adapters, and as the start of a control or motion network."""

from __future__ import annotations

import copy
import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.errors import UnsupportedError
from vqcompress.layers import SHARED_NAME, make_dense, vq_layers

MODELS = "diffusers.models.modeling_utils"
STARTERS = ("from_unet", "from_unet2d", "from_transformer")
"""Class methods that copy weights of another network."""


def attach(module: ModuleType) -> None:
    """Wrap ``ModelMixin.save_pretrained``, or the class methods of ``module`` that start a network from another."""
    if module.__name__ == MODELS:
        _wrap_saving(module)
        return
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    found = [(kind, name) for kind in kinds for name in STARTERS if name in vars(kind)]
    if not found:
        raise UnsupportedError(
            f"{module.__name__}.{STARTERS[0]} is gone, so vqcompress cannot give it dense weights; install a version "
            "in the range that pyproject.toml declares"
        )
    for kind, name in found:
        method = vars(kind)[name].__func__
        if not getattr(method, "knows_packed", False):
            setattr(kind, name, classmethod(_from_dense(method)))


def _wrap_saving(module: ModuleType) -> None:
    kind: Any = getattr(module, "ModelMixin", None)
    save = getattr(kind, "save_pretrained", None)
    if save is None:
        raise UnsupportedError(
            f"{module.__name__}.ModelMixin.save_pretrained is gone, so vqcompress cannot keep adapters out of folders; "
            "install a version in the range that pyproject.toml declares"
        )
    if not getattr(save, "knows_packed", False):
        kind.save_pretrained = _without_adapters(save)


def _without_adapters(upstream: Any) -> Any:
    """A folder has the names of a plain network: those of one with adapters are other ones, which nothing reads."""

    @functools.wraps(upstream)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self, "peft_config", None) or not vq_layers(self):
            return upstream(self, *args, **kwargs)
        state = plain_state(self)
        self.__dict__["state_dict"] = lambda: state
        try:
            return upstream(self, *args, **kwargs)
        finally:
            del self.__dict__["state_dict"]

    save_pretrained.__dict__["knows_packed"] = True
    return save_pretrained


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``network`` without adapters, under the names that it has without them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    added = tuple(
        f"{name}.{part}."
        for name, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
        for part in (*layer.adapter_layer_names, *layer.other_param_names)
    )
    kept = {key: value for key, value in network.state_dict().items() if not key.startswith(added)}
    return {key.replace(".base_layer.", "."): value for key, value in kept.items()}


def _from_dense(upstream: Any) -> Any:
    @functools.wraps(upstream)
    def start(cls: Any, *networks: Any, **options: Any) -> Any:
        given = [_dense(value) for value in networks]
        return upstream(cls, *given, **{name: _dense(value) for name, value in options.items()})

    start.__dict__["knows_packed"] = True
    return start


def _dense(value: Any) -> Any:
    """A dense copy of a network with packed layers; anything else as it is."""
    if not isinstance(value, nn.Module) or not vq_layers(value):
        return value
    if any(parameter.is_meta for parameter in value.parameters()):
        raise UnsupportedError(
            f"a network cannot start from an offloaded {type(value).__name__} with packed layers: remove the "
            "offloading first (pipeline.remove_all_hooks())"
        )
    dense = copy.deepcopy(value)
    make_dense(dense, _float_dtype(value))
    return dense


def _float_dtype(network: nn.Module) -> torch.dtype:
    """That of the packed layers' biases; without any, that of other layers."""
    layers = vq_layers(network)
    biases = (layer.bias.dtype for layer in layers.values() if layer.bias is not None)
    dense = (p.dtype for name, p in network.named_parameters() if name.rpartition(".")[0] not in {*layers, SHARED_NAME})
    return next(biases, None) or next((dtype for dtype in dense if dtype.is_floating_point), torch.float32)
