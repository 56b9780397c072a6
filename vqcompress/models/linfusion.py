"""LinFusion UNets (Liu et al. 2024, arXiv 2409.02097): Stable Diffusion with linear self-attention.

Every ``attn1`` of a diffusers UNet becomes a LinearAttention. The published checkpoints contain only these modules,
numbered by the ``modules_list`` of their config. They are mounted on the UNet of the base model.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  for pipeline folders, see network.py
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError, UnsupportedError
from vqcompress.models.official_weights import construct, load_strictly

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CONFIG_NAME = "config.json"


def self_attentions(unet: nn.Module) -> dict[str, Attention]:
    """The ``attn1`` modules of a diffusers UNet by name, in the UNet's own order."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name.rsplit(".", 1)[-1] == "attn1" and isinstance(module, Attention)
    }


def _described(name: str, attention: Attention) -> dict[str, Any]:
    width = attention.to_q.in_features
    return {"module_name": name, "dim_n": width, "heads": attention.heads, "projection_mid_dim": None}


def _checked(entry: Mapping[str, Any], attentions: Mapping[str, Attention]) -> Attention:
    name = entry["module_name"]
    if name not in attentions:
        raise ArchitectureError(f"LinFusion's module list names {name}, and this UNet has no such self-attention.")
    attention = attentions[name]
    own, given = _described(name, attention), dict(entry)
    if any(own[key] != given[key] for key in ("dim_n", "heads")) or attention.is_cross_attention:
        raise ArchitectureError(
            f"LinFusion's {name} is {given['dim_n']} wide with {given['heads']} heads; this UNet has {own['dim_n']} "
            f"with {own['heads']}{', as cross-attention' * attention.is_cross_attention}. Take the matching base UNet."
        )
    return attention


class LinFusionUNet2DConditionModel(UNet2DConditionModel):
    """A diffusers UNet with linear self-attention. It takes the arguments of ``UNet2DConditionModel`` and one more.

    ``linfusion_modules``: ``modules_list`` of a LinFusion checkpoint (``module_name``, ``dim_n``, ``heads``,
    ``projection_mid_dim``). None means every ``attn1``, with residual maps as wide as their tokens. The list is in the
    config, so a saved model loads with the same modules. Raises ArchitectureError when it does not fit the UNet.
    """

    def __init__(self, *args, linfusion_modules: list[dict] | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        attentions = self_attentions(self)
        if linfusion_modules is None:
            linfusion_modules = [_described(name, attention) for name, attention in attentions.items()]
        for entry in linfusion_modules:
            attention = _checked(entry, attentions)
            linear = LinearAttention(
                entry["dim_n"], entry["heads"], entry.get("projection_mid_dim"), attention.to_q.bias is not None
            )
            self.set_submodule(entry["module_name"], linear)
        self.register_to_config(linfusion_modules=[dict(entry) for entry in linfusion_modules])

    # diffusers reads from this signature which arguments a config may have.
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *inspect.signature(UNet2DConditionModel.__init__).parameters.values(),
            inspect.Parameter("linfusion_modules", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
    )

    @classmethod
    def from_base(cls, unet: UNet2DConditionModel, folder: str | Path) -> LinFusionUNet2DConditionModel:
        """Mount a LinFusion checkpoint folder on a base UNet.

        Tensors of ``unet`` are shared, not copied, except its self-attention, which the checkpoint replaces. The
        result has the dtype and device of ``unet`` and is in eval mode. Raises ArchitectureError if the checkpoint is
        incomplete or does not fit.
        """
        modules, adapter = read_checkpoint(folder)
        replaced = tuple(f"{entry['module_name']}." for entry in modules)
        kept = {name: tensor for name, tensor in unet.state_dict().items() if not name.startswith(replaced)}
        with torch.device("meta"):
            mounted: Any = cls.from_config(unet.config, linfusion_modules=modules)
        weights = kept | {name: tensor.to(unet.device, unet.dtype) for name, tensor in adapter.items()}
        try:
            mounted.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ArchitectureError(f"{folder} does not fit this UNet: {error}") from error
        return mounted.eval()


def mount(pipeline: DiffusionPipeline, folder: str | Path) -> None:
    """Mount a LinFusion checkpoint folder on the UNet of a Stable Diffusion pipeline; see ``from_base``."""
    pipeline.register_modules(unet=LinFusionUNet2DConditionModel.from_base(pipeline.unet, folder))


def _named(number_and_rest: str, modules: list[dict]) -> str:
    number, _, rest = number_and_rest.partition(".")
    if not number.isdecimal() or int(number) >= len(modules):
        raise ArchitectureError(
            f"LinFusion weight {number_and_rest!r} has no entry in the module list ({len(modules)} entries)."
        )
    return f"{modules[int(number)]['module_name']}.{rest}"


def read_checkpoint(folder: str | Path) -> tuple[list[dict], dict[str, Tensor]]:
    """Read ``(modules_list, weights)`` from a LinFusion checkpoint folder. The weights have the UNet's parameter names.

    Raises ArchitectureError when a file or the list is missing, or a weight's number is not in the list.
    """
    config, weights = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    for path in (config, weights):
        if not path.is_file():
            raise ArchitectureError(f"{path} is missing: a LinFusion checkpoint is {CONFIG_NAME} and {WEIGHTS_NAME}.")
    modules = json.loads(config.read_text()).get("modules_list")
    if not modules:
        raise ArchitectureError(f"{config} has no modules_list, so the weights cannot be placed in a UNet.")
    return modules, {_named(name, modules): tensor for name, tensor in load_file(weights).items()}


def linfusion_from_official(
    config: Mapping[str, object], state_dict: Mapping[str, Tensor]
) -> LinFusionUNet2DConditionModel:
    """Build the mounted UNet from its weights and arguments of ``UNet2DConditionModel`` (and ``linfusion_modules``)."""
    return load_strictly(construct(LinFusionUNet2DConditionModel, config), state_dict)


# Keeps the quotient finite where a query matches no key. It is part of the trained function, not a safety margin.
DENOMINATOR_FLOOR = 1e-4


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``φ(q)(φ(k)ᵀv / N) / (φ(q)·mean φ(k) + 1e-4)`` with ``φ = elu + 1``.

    All tensors are ``[batch, heads, tokens, head width]``. The sums run over the N key tokens and are divided by N, so
    that the constant in the denominator has the same effect at every resolution. In the numerator, keys and values are
    each divided by √N. Then neither the sum nor its terms leave the range of float16 at 16384 tokens.
    """
    query, key = torch.nn.functional.elu(query) + 1, torch.nn.functional.elu(key) + 1
    share = key.shape[-2] ** -0.5
    context = (key * share).transpose(-2, -1) @ (value * share)
    weight = query @ key.mean(dim=-2, keepdim=True).transpose(-2, -1)
    return query @ context / (weight + DENOMINATOR_FLOOR)


def residual_map(width: int, middle: int) -> nn.Sequential:
    """LinFusion's M. Its output is added to the tokens before the query or key projection."""
    return nn.Sequential(nn.Linear(width, middle), nn.LayerNorm(middle), nn.LeakyReLU(), nn.Linear(middle, width))


class LinearAttention(nn.Module):
    """Replaces the self-attention ``attn1`` of a diffusers transformer block, with the same parameter names.

    ``width``: channels of the tokens, divisible by ``heads``; ``middle``: inner width of the two residual maps.
    """

    def __init__(self, width: int, heads: int, middle: int | None = None, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=qkv_bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])
        self.to_q_, self.to_k_ = residual_map(width, middle or width), residual_map(width, middle or width)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """``[batch, tokens, width]`` -> the same shape. Raises UnsupportedError for a mask or for cross-attention."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UnsupportedError(
                "LinFusion's linear attention is unmasked self-attention: call the UNet without attention_mask, and "
                "mount LinFusion only on UNets whose attn1 is self-attention (only_cross_attention=False)."
            )
        query = self._heads(self.to_q(hidden_states + self.to_q_(hidden_states)))
        key = self._heads(self.to_k(hidden_states + self.to_k_(hidden_states)))
        mixed = linear_attention(query, key, self._heads(self.to_v(hidden_states)))
        return self.to_out[0](mixed.transpose(1, 2).flatten(-2))
