"""Networks of pipelines on the Hub, with the configurations of their folders there: text encoders and autoencoders.

Those of T5 (arXiv 1910.10683), umT5 (2304.09151), ByT5 as trained for glyphs (2403.09622), CLIP (2103.00020), Gemma 2
and 3, Qwen 2.5-VL, 3 and 3-VL, Mistral Small 3.2, ChatGLM 3; autoencoders of Stable Diffusion, FLUX, Wan, Qwen-Image,
DC-AE (2410.10733), LTX-2 and Hunyuan. Only what decides about tensors is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

from vqcompress.errors import ArchitectureError


@dataclass(frozen=True)
class HubPart:
    """A network as ``module:class``, its configuration, its number of parameters, and other arguments of the class."""

    network: str
    config: Mapping[str, Any]
    parameters: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network without weights, on the meta device. Raises `ArchitectureError` where the library lacks it."""
        kind = class_of(self.network)
        with torch.device("meta"):
            if self.network.startswith("diffusers:"):
                return kind(**self.config).eval()
            return kind(kind.config_class(**self.config), **self.arguments).eval()


def class_of(path: str) -> Any:
    """The class called ``module:name``. Raises `ArchitectureError`, which says what to update, if there is none."""
    module, name = path.split(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        library = module.split(".")[0]
        raise ArchitectureError(
            f"the installed {library} has no {name}: `pip install -U {library}`, or plan it where one is that has"
        ) from None


_T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_GATED = {"feed_forward_proj": "gated-gelu"}

T5_XXL = HubPart("transformers:T5EncoderModel", _T5 | _GATED | {"vocab_size": 32128}, 4_762_310_656)
UMT5_XXL = HubPart("transformers:UMT5EncoderModel", _T5 | _GATED | {"vocab_size": 256384}, 5_680_910_336)
BYT5_GLYPHS = HubPart(
    "transformers:T5EncoderModel",
    {"vocab_size": 1510, "d_model": 1472, "d_kv": 64, "d_ff": 3584, "num_layers": 12, "num_heads": 6} | _GATED,
    219_314_944,
)
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_L = HubPart("transformers:CLIPTextModel", _CLIP_L | {"projection_dim": 768}, 123_060_480)
CLIP_L_PROJECTED = HubPart("transformers:CLIPTextModelWithProjection", _CLIP_L | {"projection_dim": 768}, 123_650_304)
CLIP_G = HubPart("transformers:CLIPTextModelWithProjection", _CLIP_G | {"projection_dim": 1280}, 694_659_840)

GEMMA2_2B = HubPart(
    "transformers:Gemma2Model",
    {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
    },
    2_614_341_888,
)  # fmt: skip
GEMMA3_12B = HubPart(
    "transformers:Gemma3ForConditionalGeneration",
    {
        "text_config": {
            "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
        },
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 896, "patch_size": 14, "vision_use_head": False,
        },
        "mm_tokens_per_image": 256,
    },
    12_187_325_040,
)  # fmt: skip
_QWEN25_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
QWEN25_VL_7B = HubPart(
    "transformers:Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": _QWEN25_7B,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584
        },
    },
    8_292_166_656,
)  # fmt: skip
QWEN25_VL_7B_TEXT = HubPart("transformers:Qwen2_5_VLTextModel", _QWEN25_7B, 7_070_619_136)
_QWEN3_4B = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_4B = HubPart("transformers:Qwen3Model", _QWEN3_4B, 4_022_468_096)
QWEN3_4B_CAUSAL = HubPart("transformers:Qwen3ForCausalLM", _QWEN3_4B, 4_022_468_096)
QWEN3_8B_CAUSAL = HubPart(
    "transformers:Qwen3ForCausalLM",
    _QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    8_190_735_360,
)
_QWEN3_VL_4B = {
    "text_config": _QWEN3_4B,
    "vision_config": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_VL_4B = HubPart("transformers:Qwen3VLModel", _QWEN3_VL_4B, 4_437_815_808)
QWEN3_VL_4B_CAUSAL = HubPart("transformers:Qwen3VLForConditionalGeneration", _QWEN3_VL_4B, 4_437_815_808)
MISTRAL_SMALL_32 = HubPart(
    "transformers:Mistral3ForConditionalGeneration",
    {
        "text_config": {
            "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "head_dim": 64, "image_size": 1540, "patch_size": 14,
        },
        "tie_word_embeddings": False,
    },
    24_011_361_280,
)  # fmt: skip
CHATGLM3_6B = HubPart(
    "diffusers.pipelines.kolors.text_encoder:ChatGLMModel",
    {
        "num_layers": 28, "padded_vocab_size": 65024, "hidden_size": 4096, "ffn_hidden_size": 13696,
        "kv_channels": 128, "num_attention_heads": 32, "seq_length": 32768, "add_qkv_bias": True,
        "multi_query_attention": True, "multi_query_group_num": 2, "original_rope": True,
    },
    6_243_584_000,
    {"empty_init": False},  # True allocates memory on any device
)  # fmt: skip

_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
VAE_SD = HubPart("diffusers:AutoencoderKL", _KL | {"latent_channels": 4, "sample_size": 512}, 83_653_863)
VAE_SDXL = HubPart("diffusers:AutoencoderKL", _KL | {"latent_channels": 4, "sample_size": 1024}, 83_653_863)
VAE_FLUX = HubPart(
    "diffusers:AutoencoderKL",
    _KL | {"latent_channels": 16, "sample_size": 1024, "use_quant_conv": False, "use_post_quant_conv": False},
    83_819_683,
)
VAE_FLUX2 = HubPart("diffusers:AutoencoderKLFlux2", {}, 84_046_115)
VAE_WAN21 = HubPart("diffusers:AutoencoderKLWan", {}, 126_892_531)
VAE_WAN22 = HubPart(
    "diffusers:AutoencoderKLWan",
    {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "scale_factor_spatial": 16, "patch_size": 2,
    },
    704_688_668,
)  # fmt: skip
VAE_QWEN_IMAGE = HubPart("diffusers:AutoencoderKLQwenImage", {}, 126_892_531)
_DC_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
VAE_SANA = HubPart(
    "diffusers:AutoencoderDC",
    {
        "latent_channels": 32, "encoder_block_types": _DC_BLOCKS, "decoder_block_types": _DC_BLOCKS,
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3), "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
        "downsample_block_type": "conv", "upsample_block_type": "interpolate",
    },
    312_250_275,
)  # fmt: skip
VAE_LTX2 = HubPart("diffusers:AutoencoderKLLTX2Video", {}, 1_222_479_601)
VAE_HUNYUAN_VIDEO_15 = HubPart("diffusers:AutoencoderKLHunyuanVideo15", {}, 1_260_634_115)
VAE_HUNYUAN_IMAGE = HubPart(
    "diffusers:AutoencoderKLHunyuanImage",
    {
        "in_channels": 3, "out_channels": 3, "latent_channels": 64,
        "block_out_channels": (128, 256, 512, 512, 1024, 1024), "layers_per_block": 2,
        "spatial_compression_ratio": 32, "sample_size": 384, "downsample_match_channel": True,
        "upsample_match_channel": True,
    },
    405_575_491,
)  # fmt: skip
