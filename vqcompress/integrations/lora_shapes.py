"""The dense shapes of packed layers, for LoRA loaders of diffusers that compare a LoRA with ``module.weight.shape``.

FLUX's loader does: a Control LoRA has more input channels than the network, which it then widens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.errors import UnsupportedError
from vqcompress.layers import PackedLayer

SHAPE, WIDEN, PAD = (
    "_calculate_module_shape",
    "_maybe_expand_transformer_param_shape_or_error_",
    "_maybe_expand_lora_state_dict",
)


def attach(lora_pipeline: ModuleType) -> None:
    """Wrap the shape-reading methods of the loaders in ``diffusers.loaders.lora_pipeline``."""
    kinds = [kind for kind in vars(lora_pipeline).values() if isinstance(kind, type) and SHAPE in vars(kind)]
    if not kinds:
        raise UnsupportedError(
            f"{lora_pipeline.__name__}.FluxLoraLoaderMixin.{SHAPE} is gone, so vqcompress cannot tell loaders the "
            "shapes of packed layers; install a version in the range that pyproject.toml declares"
        )
    for kind in kinds:
        shape = vars(kind)[SHAPE]
        if not getattr(shape.__func__, "knows_packed", False):
            setattr(kind, SHAPE, staticmethod(_dense_shape_first(shape.__func__)))
            for name in (WIDEN, PAD):
                setattr(kind, name, classmethod(_refusing_misfits(vars(kind)[name].__func__)))


def _dense_shape_first(upstream: Any) -> Any:
    @functools.wraps(upstream)
    def shape(model: Any, base_module: Any = None, base_weight_param_name: str | None = None) -> Any:
        named = (base_weight_param_name or "").removesuffix(".weight")
        layer = base_module if base_module is not None or not named else model.get_submodule(named)
        if (packed := packed_base(layer)) is not None:
            return torch.Size(packed.dense_shape)
        return upstream(model, base_module, base_weight_param_name)

    shape.__dict__["knows_packed"] = True
    return shape


def _refusing_misfits(upstream: Any) -> Any:
    @functools.wraps(upstream)
    def checked(cls: Any, transformer: Any, lora_state_dict: Any = None, *args: Any, **kwargs: Any) -> Any:
        _refuse_misfits(transformer, lora_state_dict or {})
        return upstream(cls, transformer, lora_state_dict, *args, **kwargs)

    return checked


def _refuse_misfits(transformer: nn.Module, lora: Mapping[str, Tensor]) -> None:
    """Packed layers cannot be widened, nor does a loader know how far to pad a LoRA for one."""
    for name, module in transformer.named_modules():
        plain = name.replace(".base_layer", "")
        key = next((key for key in lora if f".{key}".endswith(f".{plain}.lora_A.weight")), None)
        if key and isinstance(module, PackedLayer) and lora[key].shape[1] != module.dense_shape[1]:
            raise UnsupportedError(
                f"the LoRA is for a layer {plain} with {lora[key].shape[1]} inputs, this one has "
                f"{module.dense_shape[1]} and is packed, so it cannot be widened: keep it dense (an `ignore` rule) "
                "when quantizing, or make a dense pipeline with `vqcompress dequantize DIR -o DIR2`"
            )


def packed_base(module: Any) -> PackedLayer | None:
    """The packed layer that ``module`` is, or that an adapter is wrapped around."""
    base = getattr(module, "base_layer", module)
    return base if isinstance(base, PackedLayer) else None
