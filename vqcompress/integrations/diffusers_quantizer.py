"""Loading and saving components with packed layers in diffusers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

from vqcompress.cache_line import on_cache_line
from vqcompress.errors import CheckpointError
from vqcompress.integrations.config import VQCompressConfig
from vqcompress.integrations.data_free import quantize_data_free
from vqcompress.integrations.opening_checks import gc_disabled
from vqcompress.integrations.quantization_parameters import (
    finalize,
    from_bits,
    packed_keys,
    refuse_missing,
    restored,
    to_bits,
)
from vqcompress.integrations.registration import table
from vqcompress.integrations.stored_tensors import StoredTensors
from vqcompress.layers import QUANT_METHOD, empty_layers, make_dense
from vqcompress.layers.description import layer_specs


def attach(auto: ModuleType) -> None:
    """Register our classes in the two tables of ``diffusers.quantizers.auto``, which diffusers reads on loading."""
    table(auto, "AUTO_QUANTIZER_MAPPING")[QUANT_METHOD] = VQDiffusersQuantizer
    table(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING")[QUANT_METHOD] = VQCompressConfig


class VQDiffusersQuantizer(DiffusersQuantizer):
    """Loads the packed form as it is stored. Quantization parameters keep every bit at any load dtype.

    diffusers casts floating-point tensors to the load dtype, also when it writes them to an offload folder. Float16
    quantization parameters are therefore passed as int16 bits. They become float16 again when they are placed, or
    inside the layer when they are offloaded.
    """

    use_keep_in_fp32_modules = True
    quantization_config: VQCompressConfig

    def __init__(self, quantization_config: VQCompressConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.description = quantization_config.description
        self.specs = layer_specs(self.description)
        self.stored = StoredTensors(self.specs, self.description["shared"])
        self.dtypes = self.stored.dtypes
        self.float16_keys = {key for key, dtype in self.dtypes.items() if dtype == torch.float16}
        self.unplaced = set(self.dtypes)
        self.unread = set(self.dtypes)
        self.layers_are_placed = False
        self.load_dtype: torch.dtype | None = None
        self.one_dtype = False  # whether all floating-point tensors are cast to load_dtype
        self.modules: dict[str, nn.Module] = {}  # modules of the model being loaded
        self.stays_on_cpu = False
        self.set_aside: dict[str, Tensor] = {}

    def update_torch_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        """Store the load dtype and return it unchanged."""
        self.load_dtype = torch_dtype
        return torch_dtype

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        self.stays_on_cpu = kwargs.get("device_map") is None
        with gc_disabled():
            empty_layers(
                model, self.description, parameter_dtype=torch.int16, specs=self.specs, alike_are_one=self.stays_on_cpu
            )
            self.modules = dict(model.named_modules(remove_duplicate=False))
        self.layers_are_placed = True
        self.one_dtype = not kwargs.get("keep_in_fp32_modules")
        if (state := kwargs.get("state_dict")) is not None:
            state.update(self.set_aside)
            self.set_aside = {}
            # from_single_file does not call update_missing_keys.
            refuse_missing(packed_keys(model) - set(state), type(model).__name__)

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Check packed tensors, and convert quantization parameters to int16 bits before diffusers casts them.

        from_single_file calls this before the model exists, and would mistake keys that a dense model lacks for those
        of another layout. These keys are set aside until the packed layers are in place.
        """
        with gc_disabled():
            self.stored.check_all(state_dict)
        self.unread -= state_dict.keys()
        state = to_bits(state_dict, self.float16_keys)
        if self.layers_are_placed and self.stays_on_cpu:
            with gc_disabled():
                return self._without_placed(state)
        if self.layers_are_placed or not self.pre_quantized:
            return state
        extra = self.dtypes.keys() - {f"{layer}.weight" for layer in self.specs}
        self.set_aside = {key: tensor for key, tensor in state.items() if key in extra}
        return {key: tensor for key, tensor in state.items() if key not in extra}

    def _without_placed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Place the tensors that need no cast and return the others.

        diffusers' own loading takes longer per tensor than all the steps here.
        """
        rest = {}
        for key, tensor in state.items():
            path, _, name = key.rpartition(".")
            module, dtype = self.modules.get(path), self.dtypes.get(key)
            held = None if module is None else module._parameters.get(name)
            if held is None or held.shape != tensor.shape:
                if held is not None and dtype is not None:
                    self.check_quantized_param_shape(key, held, tensor)
                rest[key] = tensor
            elif dtype is not None:
                place(module, name, restored(tensor, dtype))
            elif self.one_dtype and tensor.dtype == (self.load_dtype or held.dtype):
                place(module, name, on_cache_line(tensor))
            else:
                rest[key] = tensor
        self.unplaced -= state.keys()
        return rest

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, *args: Any, **kwargs: Any
    ) -> bool:
        """True: `create_quantized_param` places every tensor. diffusers' general path takes several times as long, and
        a packed layer has more tensors than a dense one."""
        return self.pre_quantized

    def check_quantized_param_shape(self, param_name: str, expected: Tensor, found: Tensor) -> None:
        """Called when shapes differ. Some formats allow that, ours does not."""
        raise CheckpointError(
            f"{param_name} is stored with shape {tuple(found.shape)}, the config says {tuple(expected.shape)}; the "
            "weight file and config.json are not of one model, copy or download the folder again"
        )

    def create_quantized_param(
        self,
        model: nn.Module | None,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Place a tensor in the model; packed tensors keep their stored dtype."""
        path, _, name = param_name.rpartition(".")
        if (dtype := self.dtypes.get(param_name)) is not None:
            param_value = restored(param_value, dtype)
            self.unplaced.discard(param_name)
        else:
            param_value = on_cache_line(param_value)
        place(self.modules[path], name, param_value.to(target_device))

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse missing packed tensors. diffusers only warns, but a packed layer cannot run without its tensors."""
        layers = self.description["layers"]
        packed = {key for key in missing_keys if key in self.dtypes or key.rpartition(".")[0] in layers}
        refuse_missing(packed, type(model).__name__)
        return missing_keys

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            quantize_data_free(model, self.quantization_config)
        else:
            refuse_missing(self.unread, type(model).__name__)  # an index can list what no file has
        if self.pre_quantized and self.unplaced:  # tensors that were written to an offload folder
            finalize(model)
        self.modules = {}  # the model references this quantizer: avoid a reference cycle
        # Casting works on packed layers, but diffusers refuses it for models with is_quantized set.
        model.is_quantized = False

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dict as it is stored, with quantization parameters in float16."""
        return from_bits(state_dict, self.float16_keys), {}

    def _dequantize(self, model: nn.Module) -> nn.Module:
        make_dense(model, model.dtype)
        return model

    @property
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


def place(module: nn.Module, key: str, value: Tensor) -> None:
    """Set ``value`` as the parameter or buffer ``key`` of ``module`` itself.

    A parameter keeps the ``requires_grad`` of the one it replaces; codes and other integers become frozen parameters.
    """
    if key in module._buffers:
        module._buffers[key] = value
        return
    old = module._parameters[key]
    trainable = old is not None and old.requires_grad and value.is_floating_point()
    # nn.Module.register_parameter is skipped: its checks are for new names and slow down loading.
    module._parameters[key] = nn.Parameter(value, requires_grad=trainable)
