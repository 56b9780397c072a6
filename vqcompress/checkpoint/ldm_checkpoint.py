"""A dense Stable Diffusion pipeline as one file in the original (LDM) layout.

Names are those that diffusers reads. Source: ``convert_ldm_vae_checkpoint``,
``convert_ldm_clip_checkpoint`` and ``convert_open_clip_checkpoint`` in ``diffusers/loaders/single_file_utils.py``,
inverted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqcompress.architectures.ldm_names import UNET_PREFIX, UNetNames
from vqcompress.architectures.prediction import Prediction
from vqcompress.errors import UnsupportedError

TextNames = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
OPEN_CLIP_WIDTH = 1024  # Stable Diffusion 2 has OpenCLIP ViT-H, 1 has OpenAI's ViT-L

VAE_PREFIX = "first_stage_model."
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_RESNET = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)")
VAE_SAMPLER = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(down|up)samplers\.0\.(.+)")
VAE_MIDDLE_RESNET = re.compile(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)")
VAE_MIDDLE_ATTENTION = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)")

CLIP_LEVEL = "text_model."
OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
CLIP_PROJECTIONS = ("q", "k", "v")


def has_ldm_layout(pipeline: Any) -> bool:
    """Whether the original layout has names for this pipeline's parts: SD 1.x, 2.x and SDXL, text to image."""
    return _ldm_problem(pipeline) is None


def _ldm_problem(pipeline: Any) -> str | None:
    kind = type(pipeline).__name__
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        return f"a {kind} has no original (LDM) layout; that is for SD 1.x, 2.x and SDXL"
    parts = ("unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "StableDiffusionXLPipeline" else []))
    if missing := [name for name in parts if getattr(pipeline, name, None) is None]:
        return f"the original (LDM) layout is of whole pipelines, and this one has no {', '.join(missing)}"
    widths = [getattr(pipeline, name).config.hidden_size for name in parts if name.startswith("text")]
    if len(widths) > 1 and len(set(widths)) == 1:
        return (
            f"both text encoders of this pipeline are {widths[0]} wide, and readers of the original (LDM) layout tell "
            "SDXL's by their widths"
        )
    return None


def ldm_tensors(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a dense ``pipeline`` under their original names, each with its own memory, and the marks that say
    what its network predicts (`architectures.prediction`).

    Raises `UnsupportedError` for a pipeline that has no such layout.
    """
    if problem := _ldm_problem(pipeline):
        raise UnsupportedError(f"{problem}: use the diffusers layout")
    tensors = ldm_unet(pipeline.unet.state_dict(), pipeline.unet.config)
    tensors |= ldm_vae(pipeline.vae.state_dict(), pipeline.vae.config)
    for name, rename in _text_names(pipeline).items():
        tensors |= rename(getattr(pipeline, name).state_dict())
    tensors |= Prediction.of_pipeline(pipeline).markers()
    return {key: tensor.detach().contiguous() for key, tensor in tensors.items()}


def _text_names(pipeline: Any) -> dict[str, TextNames]:
    if type(pipeline).__name__ == "StableDiffusionXLPipeline":
        return {
            "text_encoder": partial(ldm_clip, prefix="conditioner.embedders.0.transformer."),
            "text_encoder_2": partial(ldm_open_clip, prefix="conditioner.embedders.1.model."),
        }
    if pipeline.text_encoder.config.hidden_size == OPEN_CLIP_WIDTH:
        return {"text_encoder": partial(ldm_open_clip, prefix="cond_stage_model.model.")}
    return {"text_encoder": partial(ldm_clip, prefix="cond_stage_model.transformer.")}


def checkpoint_metadata(pipeline: Any, dtype: torch.dtype) -> dict[str, str]:
    """What the file's header says of it."""
    said = {"format": "pt", "pipeline": type(pipeline).__name__, "dtype": str(dtype).removeprefix("torch.")}
    return said | Prediction.of_pipeline(pipeline).metadata()


def ldm_unet(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a ``UNet2DConditionModel`` under their original names.

    Raises `UnsupportedError` for a UNet that the original layout has no names for.
    """
    if not isinstance(config["layers_per_block"], int):
        raise UnsupportedError("the original layout has no names for a UNet whose blocks differ in depth")
    names = UNetNames(config["layers_per_block"], frozenset(state))
    return {UNET_PREFIX + names.of(key): tensor for key, tensor in state.items()}


def ldm_vae(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an ``AutoencoderKL`` under their original names; attention matrices are 1×1 convolutions there."""
    last = len(config["block_out_channels"]) - 1
    return {VAE_PREFIX + _vae_name(key, last): _vae_shaped(key, tensor) for key, tensor in state.items()}


def _vae_name(key: str, last: int) -> str:
    """``last`` is the number of the last block: the original counts the decoder's from the image."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := VAE_RESNET.fullmatch(key):
        return f"{found[1]}.{_vae_block(found, last)}.block.{found[3]}.{found[4]}"
    if found := VAE_SAMPLER.fullmatch(key):
        return f"{found[1]}.{_vae_block(found, last)}.{found[3]}sample.{found[4]}"
    if found := VAE_MIDDLE_RESNET.fullmatch(key):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    if found := VAE_MIDDLE_ATTENTION.fullmatch(key):
        return f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}"
    return key


def _vae_block(found: re.Match[str], last: int) -> int:
    return int(found[2]) if found[1] == "encoder.down" else last - int(found[2])


def _vae_shaped(key: str, tensor: Tensor) -> Tensor:
    found = VAE_MIDDLE_ATTENTION.fullmatch(key)
    return tensor[:, :, None, None] if found and tensor.ndim == 2 else tensor


def ldm_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A ``CLIPTextModel`` as the original checkpoints hold it: transformers' names of before version 5.6."""
    return {f"{prefix}{CLIP_LEVEL}{key.removeprefix(CLIP_LEVEL)}": tensor for key, tensor in state.items()}


def ldm_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text model, with or without projection, under OpenCLIP's names; query, key and value in one matrix."""
    plain = {key.removeprefix(CLIP_LEVEL): tensor for key, tensor in state.items()}
    named: dict[str, Tensor] = {}
    for key, tensor in plain.items():
        found = CLIP_LAYER.fullmatch(key)
        if key == "text_projection.weight":
            named["text_projection"] = tensor.T.contiguous()
        elif found is None:
            named[OPEN_CLIP_ENDS[key]] = tensor
        elif found[2] in OPEN_CLIP_LAYER:
            named[f"transformer.resblocks.{found[1]}.{OPEN_CLIP_LAYER[found[2]]}.{found[3]}"] = tensor
        elif found[2] == "self_attn.q_proj":
            parts = [plain[f"encoder.layers.{found[1]}.self_attn.{part}_proj.{found[3]}"] for part in CLIP_PROJECTIONS]
            named[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"] = torch.cat(parts)
    return {prefix + key: tensor for key, tensor in named.items()}
