"""How diffusers loads and saves components with packed layers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

from vqcompress.integrations.companions import (
    companion_keys,
    from_bits,
    packed_keys,
    refuse_missing,
    settle,
    to_bits,
)
from vqcompress.integrations.config import VQCompressConfig
from vqcompress.integrations.data_free import quantize_data_free
from vqcompress.integrations.upstream import table
from vqcompress.layers import QUANT_METHOD, empty_layers, make_dense


def attach(auto: ModuleType) -> None:
    """Enter our classes in the two tables of ``diffusers.quantizers.auto``, which diffusers looks up when it loads."""
    table(auto, "AUTO_QUANTIZER_MAPPING")[QUANT_METHOD] = VQDiffusersQuantizer
    table(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING")[QUANT_METHOD] = VQCompressConfig


class VQDiffusersQuantizer(DiffusersQuantizer):
    """Loads the packed form as it is stored; companions keep every bit at any load dtype.

    diffusers casts what is floating to the load dtype, also on the way to an offload folder. So companions travel as
    int16 bits and become float16 again in `_process_model_after_weight_loading`, or in the layer when they are offloaded.
    """

    use_keep_in_fp32_modules = True
    quantization_config: VQCompressConfig

    def __init__(self, quantization_config: VQCompressConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.description = quantization_config.description
        self.companions = companion_keys(self.description, torch.float16)
        self.layers_are_placed = False
        self.set_aside: dict[str, Tensor] = {}

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        empty_layers(model, self.description, companion_dtype=torch.int16)
        self.layers_are_placed = True
        if (state := kwargs.get("state_dict")) is not None:
            state.update(self.set_aside)
            self.set_aside = {}
            # from_single_file asks nobody about missing keys.
            refuse_missing(packed_keys(model) - set(state), type(model).__name__)

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Companions as bits, before diffusers casts.

        from_single_file calls this before it has a model, and then takes keys that a dense model lacks for those of another
        layout: they are set aside until the packed layers are in place.
        """
        state = to_bits(state_dict, self.companions)
        if self.layers_are_placed or not self.pre_quantized:
            return state
        extra = companion_keys(self.description)
        self.set_aside = {key: tensor for key, tensor in state.items() if key in extra}
        return {key: tensor for key, tensor in state.items() if key not in extra}

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Upstream only warns; a packed layer without its tensors must not run."""
        refuse_missing(packed_keys(model) & set(missing_keys), type(model).__name__)
        return missing_keys

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if self.pre_quantized:
            settle(model)
        else:
            quantize_data_free(model, self.quantization_config)
        # Casting works on our layers, and diffusers refuses it for what it calls quantized.
        model.is_quantized = False

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state as it is stored: companions in float16."""
        return from_bits(state_dict, self.companions), {}

    def _dequantize(self, model: nn.Module) -> nn.Module:
        make_dense(model, model.dtype)
        return model

    @property
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
