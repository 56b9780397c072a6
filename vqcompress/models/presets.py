"""Every published configuration by name, with official constructor arguments.

A network that is built on the meta device uses no memory.

Sizes: DiT table 1 (arXiv 2212.09748; SiT has the same), MDT (2303.14389), DiffiT's released factory (2312.02139),
Stable Diffusion 1.5 and 2.1 (2112.10752) and SDXL (2307.01952) as in their folders on the Hub,
PixArt-α (2310.00426), DiT-MoE table 1 (2407.11633), Lumina-T2I (2405.05945) and Lumina-Next (2406.18583), Large-DiT's
model zoo, Qihoo-T2I (2409.04005; its video and multi-view configurations are not published), LinFusion (2409.02097).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from vqcompress.errors import ArchitectureError
from vqcompress.near_misses import did_you_mean

# Family -> "module:name" of its network. These are strings, so that listing the names needs no imports.
NETWORKS: dict[str, str] = {
    "dit": "vqcompress.models.dit:DiT",
    "sit": "vqcompress.models.dit:SiT",
    "mdt_v1": "vqcompress.models.mdt:MDTv1",
    "mdt_v2": "vqcompress.models.mdt:MDTv2",
    "dit_moe": "vqcompress.models.dit_moe:DiTMoE",
    "diffit_latent": "vqcompress.models.diffit_latent:DiffiTLatent",
    "diffit_image": "vqcompress.models.diffit_image:DiffiTImage",
    "pixart": "vqcompress.models.pixart:PixArt",
    "flag_dit": "vqcompress.models.flag_dit:flag_dit_network",
    "large_dit": "vqcompress.models.flag_dit:LargeDiT",
    "next_dit": "vqcompress.models.next_dit:next_dit_network",
    "pt_dit": "vqcompress.models.pt_dit:PTDiT",
    "linfusion": "vqcompress.models.linfusion:LinFusionUNet2DConditionModel",
    "unet": "diffusers:UNet2DConditionModel",
    "diffusers_dit": "diffusers:DiTTransformer2DModel",
    "diffusers_lumina": "diffusers:LuminaNextDiT2DModel",
}


@dataclass(frozen=True)
class Preset:
    """A published configuration: a family (a key of `NETWORKS`) and its constructor arguments."""

    family: str
    arguments: Mapping[str, object]

    def build(self, device: str | torch.device = "meta") -> nn.Module:
        """Build the network in eval mode, with random weights, or without weights on the meta device."""
        module, name = NETWORKS[self.family].split(":")
        with torch.device(device):
            return getattr(import_module(module), name)(**self.arguments).eval()


def _size(width: int, depth: int, heads: int, **more: object) -> dict[str, object]:
    return {"hidden_size": width, "depth": depth, "num_heads": heads, **more}


_DIT_SIZES = {"s": _size(384, 12, 6), "b": _size(768, 12, 12), "l": _size(1024, 24, 16), "xl": _size(1152, 28, 16)}
_MOE_SIZES = {
    "s-8e2a": _size(384, 12, 6, num_experts=8),
    "s-16e2a": _size(384, 12, 6, num_experts=16),
    "b-8e2a": _size(768, 12, 12, num_experts=8),
    "xl-8e2a": _size(1152, 28, 16, num_experts=8, use_flash_attn=True),
    "g-16e2a": _size(1408, 40, 16, num_experts=16, use_flash_attn=True),
}
_XL = _DIT_SIZES["xl"]


def _llama(width: int, depth: int, heads: int = 32, **more: object) -> dict[str, object]:
    return {"dim": width, "n_layers": depth, "n_heads": heads, "multiple_of": 256, "qk_norm": True, **more}


_NEXT_2B = _llama(2304, 24, n_kv_heads=8, cap_feat_dim=2048)
_NEXT_IN_DIFFUSERS = {
    "hidden_size": 2304,
    "num_layers": 24,
    "num_attention_heads": 32,
    "num_kv_heads": 8,
    "multiple_of": 256,
    "cross_attention_dim": 2048,
    "qk_norm": True,
}
_LABELS_3B = _llama(3072, 32, num_classes=1000)
_QIHOO = {
    "num_heads": 16,
    "head_dim": 72,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "compress_ratios": (1, 8, 8),
    "proxy_compress_ratios": (1, 8, 8),
}


_SD: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}

SDXL_UNET: dict[str, Any] = {
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
}

_UNETS: dict[str, dict[str, Any]] = {
    "sd15": _SD | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": _SD
    | {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": SDXL_UNET,
}

# LinFusion takes the arguments of its base.
_LINFUSION: dict[str, dict[str, Any]] = {f"linfusion-{base}": config for base, config in _UNETS.items()}
_UNETS["sdxl-turbo"] = _UNETS["sdxl"] | {"sample_size": 64}


def _dits() -> Iterator[tuple[str, Preset]]:
    for family in ("dit", "sit"):
        for name, size in _DIT_SIZES.items():
            for patch in (2, 4, 8):
                yield f"{family}-{name}-{patch}", Preset(family, size | {"patch_size": patch})
        yield f"{family}-xl-2-512", Preset(family, _XL | {"input_size": 64})


PRESETS: dict[str, Preset] = {
    **dict(_dits()),
    "mdt-v1-xl-2": Preset("mdt_v1", _XL | {"decode_layer": 2}),
    "mdt-v2-xl-2": Preset("mdt_v2", _XL | {"decode_layer": 4}),
    "diffit-256": Preset("diffit_latent", _XL | {"input_size": 32}),
    "diffit-512": Preset("diffit_latent", _XL | {"input_size": 64}),
    "diffit-image-64": Preset("diffit_image", {"image_size": 64}),
    "diffit-image-cifar10": Preset(
        "diffit_image", {"image_size": 32, "widths": (128, 256, 256), "blocks": (4, 4, 4), "num_classes": 10}
    ),
    "pixart-alpha-256": Preset("pixart", _XL | {"input_size": 32, "lewei_scale": 0.5}),
    "pixart-alpha-512": Preset("pixart", _XL | {"input_size": 64, "lewei_scale": 1.0}),
    "pixart-alpha": Preset("pixart", _XL | {"input_size": 128, "lewei_scale": 2.0, "sizes": True}),
    **{f"dit-moe-{name}": Preset("dit_moe", size) for name, size in _MOE_SIZES.items()},
    "lumina-t2i": Preset("flag_dit", _llama(3072, 32, cap_feat_dim=4096)),
    "flag-dit-3b": Preset("flag_dit", _LABELS_3B),
    "large-dit-600m": Preset("large_dit", _llama(1536, 16, num_classes=1000)),
    "large-dit-3b": Preset("large_dit", _LABELS_3B),
    "large-dit-7b": Preset("large_dit", _llama(4096, 32, num_classes=1000)),
    "lumina-next-t2i": Preset("next_dit", _NEXT_2B),
    "lumina-next-sft": Preset("next_dit", _NEXT_2B),
    "qihoo-t2i": Preset("pt_dit", _QIHOO),
    **{name: Preset("linfusion", arguments) for name, arguments in _LINFUSION.items()},
    **{name: Preset("unet", arguments) for name, arguments in _UNETS.items()},
    "lumina-next": Preset("diffusers_lumina", _NEXT_IN_DIFFUSERS),
}

SYNONYMS: dict[str, str] = {
    "sd1.5": "sd15",
    "sd2.1": "sd21",
    "linfusion-xl": "linfusion-sdxl",
    "linfusion-1-5": "linfusion-sd15",
    "linfusion-2-1": "linfusion-sd21",
    "pixart-alpha-1024": "pixart-alpha",
    "dit": "dit-xl-2",
    "dit-xl-2-256": "dit-xl-2",
    "sit": "sit-xl-2",
    "sit-xl-2-256": "sit-xl-2",
    "mdt-v1": "mdt-v1-xl-2",
    "mdt-v2": "mdt-v2-xl-2",
    "diffit": "diffit-256",
    "diffit-image": "diffit-image-64",
    "dit-moe-s": "dit-moe-s-8e2a",
    "dit-moe-b": "dit-moe-b-8e2a",
    "dit-moe-xl": "dit-moe-xl-8e2a",
    "dit-moe-g": "dit-moe-g-16e2a",
    "flag-dit": "flag-dit-3b",
    "large-dit": "large-dit-3b",
    "pt-dit": "qihoo-t2i",
    "qihoo-t2i-1b": "qihoo-t2i",
}
"""Other names -> the preset's name."""


def preset(name: str) -> Preset:
    """Return the published configuration called ``name`` (or a synonym). If there is none, raises ArchitectureError."""
    known = SYNONYMS.get(name, name)
    if known not in PRESETS:
        meant = did_you_mean(name, [*PRESETS, *SYNONYMS])
        raise ArchitectureError(f"no published configuration is called {name!r}{meant}; `vqcompress presets` lists all")
    return PRESETS[known]
