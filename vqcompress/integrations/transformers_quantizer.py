"""Loading and saving text encoders with packed layers in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers.base import HfQuantizer

from vqcompress.integrations.config import VQCompressConfig
from vqcompress.integrations.data_free import quantize_data_free
from vqcompress.integrations.quantization_parameters import finalize, packed_keys, refuse_missing
from vqcompress.integrations.registration import table
from vqcompress.integrations.stored_tensors import StoredTensors
from vqcompress.layers import QUANT_METHOD, empty_layers, make_dense, vq_layers
from vqcompress.layers.description import layer_specs
from vqcompress.layers.module_names import fit_names


def attach(auto: ModuleType) -> None:
    """Register our classes in the two tables of ``transformers.quantizers.auto``."""
    table(auto, "AUTO_QUANTIZER_MAPPING")[QUANT_METHOD] = VQTransformersQuantizer
    table(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING")[QUANT_METHOD] = VQCompressConfig


class VQTransformersQuantizer(HfQuantizer):
    """Loads the packed form as it is stored."""

    quantization_config: VQCompressConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if not self.pre_quantized:
            return model
        description = fit_names(model, self.quantization_config.description)
        stored = StoredTensors(specs := layer_specs(description), description["shared"])
        stored.check_files(kwargs.get("checkpoint_files") or ())
        empty_layers(model, description, specs=specs)
        refuse_missing(_absent(packed_keys(model), kwargs.get("checkpoint_files")), type(model).__name__)
        for layer in vq_layers(model).values():
            # transformers initialises tensors that it has not read, including codes that go to an offload folder.
            for tensor in (layer, *layer.parameters()):
                tensor._is_hf_initialized = True
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.pre_quantized:
            self._check_and_finalize(model)
        else:
            quantize_data_free(model, self.quantization_config)
        # Casting works on packed layers, but transformers refuses it for models with is_quantized set.
        model.is_quantized = False
        return model

    def _check_and_finalize(self, model: nn.Module) -> None:
        state = model.state_dict(keep_vars=True)
        # transformers marks the tensors that it read; tensors on the meta device are read later by an offloader.
        packed = (key for key in packed_keys(model) if state[key].device.type != "meta")
        missing = {key for key in packed if not getattr(state[key], "_is_hf_initialized", False)}
        refuse_missing(missing, type(model).__name__)
        finalize(model)

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        make_dense(model, dtype or model.dtype)
        return model

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the same format back."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters can be trained, since gradients pass through packed layers."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: each packed layer is one opaque operator."""
        return True


def _absent(expected: set[str], files: Sequence[str] | None) -> set[str]:
    """Keys that are in no file, ignoring a leading level that transformers adds or drops on loading."""
    stored: set[str] = set()
    for file in files or ():
        with safe_open(file, framework="pt") as opened:
            stored |= set(opened.keys())
    tails = stored | {key.partition(".")[2] for key in stored}
    return {key for key in expected if key not in tails and key.partition(".")[2] not in stored} if stored else set()
