"""Stable Diffusion's UNets, and the same with linear attention (cards of Yuanshi/LinFusion-1-5, -2-1 and -XL)."""

from __future__ import annotations

from typing import Any

_SD: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}

UNET_PRESETS: dict[str, dict[str, Any]] = {
    "sd15": _SD | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": _SD
    | {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

# LinFusion takes the arguments of its base.
LINFUSION_PRESETS: dict[str, dict[str, Any]] = {f"linfusion-{base}": config for base, config in UNET_PRESETS.items()}
UNET_PRESETS["sdxl-turbo"] = UNET_PRESETS["sdxl"] | {"sample_size": 64}
