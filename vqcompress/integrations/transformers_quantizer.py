"""How transformers loads and saves text encoders with packed layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn
from transformers.quantizers.base import HfQuantizer

from vqcompress.integrations.companions import packed_keys, refuse_missing, settle
from vqcompress.integrations.config import VQCompressConfig
from vqcompress.integrations.upstream import table
from vqcompress.layers import QUANT_METHOD, empty_layers


def attach(auto: ModuleType) -> None:
    """Enter our classes in the two tables of ``transformers.quantizers.auto``."""
    table(auto, "AUTO_QUANTIZER_MAPPING")[QUANT_METHOD] = VQTransformersQuantizer
    table(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING")[QUANT_METHOD] = VQCompressConfig


class VQTransformersQuantizer(HfQuantizer):
    """Loads the packed form as it is stored."""

    quantization_config: VQCompressConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        empty_layers(model, fit_names(model, self.quantization_config.to_dict()))
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        state = model.state_dict(keep_vars=True)
        # transformers marks what it read; on the meta device lies what an offloader reads later.
        packed = (key for key in packed_keys(model) if state[key].device.type != "meta")
        missing = {key for key in packed if not getattr(state[key], "_is_hf_initialized", False)}
        refuse_missing(missing, type(model).__name__)
        settle(model)
        # Casting works on our layers, and transformers refuses it for what it calls quantized.
        model.is_quantized = False
        return model

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the same format back."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters train on top, gradients pass through packed layers."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Packed layers are one opaque operator each."""
        return True


def fit_names(model: nn.Module, description: Mapping[str, Any]) -> dict[str, Any]:
    """``description`` with layer names as this version of transformers has them.

    CLIP's text model lost its ``text_model.`` level in transformers 5; weights are renamed on loading, and so must names be.
    """
    names = dict(model.named_modules())
    layers = {_fit(name, names): entry for name, entry in description["layers"].items()}
    return {**description, "layers": layers}


def _fit(name: str, names: Mapping[str, nn.Module]) -> str:
    candidates = (name, name.removeprefix("text_model."), f"text_model.{name}")
    return next((candidate for candidate in candidates if candidate in names), name)
