"""A dense Stable Diffusion pipeline as one file in the original (LDM) layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqcompress.checkpoint.ldm_text import clip, open_clip
from vqcompress.checkpoint.ldm_unet import ldm_unet
from vqcompress.checkpoint.ldm_vae import ldm_vae
from vqcompress.errors import UnsupportedError

TextNames = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
OPEN_CLIP_WIDTH = 1024  # Stable Diffusion 2 has OpenCLIP ViT-H, 1 has OpenAI's ViT-L
SDXL_TEXT: dict[str, TextNames] = {
    "text_encoder": partial(clip, prefix="conditioner.embedders.0.transformer."),
    "text_encoder_2": partial(open_clip, prefix="conditioner.embedders.1.model."),
}


def has_ldm_layout(pipeline: Any) -> bool:
    """Whether the original layout has names for this pipeline's parts: SD 1.x, 2.x and SDXL, text to image."""
    return type(pipeline).__name__ in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def ldm_tensors(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a dense ``pipeline`` under their original names, each with its own memory.

    Raises `UnsupportedError` for a pipeline that has no such layout.
    """
    if not has_ldm_layout(pipeline):
        raise UnsupportedError(
            f"a {type(pipeline).__name__} has no original (LDM) layout; that is for SD 1.x, 2.x and SDXL: use the diffusers layout"
        )
    tensors = ldm_unet(pipeline.unet.state_dict(), pipeline.unet.config)
    tensors |= ldm_vae(pipeline.vae.state_dict(), pipeline.vae.config)
    for name, rename in _text_names(pipeline).items():
        tensors |= rename(getattr(pipeline, name).state_dict())
    return {key: tensor.detach().contiguous() for key, tensor in tensors.items()}


def _text_names(pipeline: Any) -> dict[str, TextNames]:
    if type(pipeline).__name__ == "StableDiffusionXLPipeline":
        return SDXL_TEXT
    if pipeline.text_encoder.config.hidden_size == OPEN_CLIP_WIDTH:
        return {"text_encoder": partial(open_clip, prefix="cond_stage_model.model.")}
    return {"text_encoder": partial(clip, prefix="cond_stage_model.transformer.")}


def checkpoint_metadata(pipeline: Any, dtype: torch.dtype) -> dict[str, str]:
    """What the file's header says of it."""
    return {"format": "pt", "pipeline": type(pipeline).__name__, "dtype": str(dtype).removeprefix("torch.")}
