"""Tiny components of pipelines whose prompt, and often an image beside it, goes through a Qwen-VL model."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

from tests.architectures.donors import images, popular
from tests.architectures.donors.parts import (
    MROPE,
    SMALL,
    WIDTH,
    Components,
    byte_tokenizer,
    flow,
    wan_vae,
)

MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PATCH = 14
TOKENS = {"vocab_size": 272}


def marked_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return tokenizer


def numbers() -> dict[str, int]:
    """Of the marks, by their names in a config."""
    found = marked_tokenizer().convert_tokens_to_ids(list(MARKS))
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(names, found, strict=True))


class _WithoutVideos(ProcessorMixin):
    """The libraries' processors without their part for videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        for kind in ("image", "video"):
            self._mark(f"{kind}_token", f"<|{kind}_pad|>")
        for edge in ("start", "end"):
            self._mark(f"vision_{edge}_token", f"<|vision_{edge}|>")

    def _mark(self, name: str, token: str) -> None:
        setattr(self, name, token)
        setattr(self, f"{name}_id", self.tokenizer.convert_tokens_to_ids(token))


class SmallQwen2VLProcessor(_WithoutVideos, Qwen2VLProcessor):
    """For text and images."""


class SmallQwen3VLProcessor(_WithoutVideos, Qwen3VLProcessor):
    """For text and images."""


def processor(kind: Any, patch: int = PATCH) -> Any:
    tokenizer = marked_tokenizer()
    pixels = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}
    seen = Qwen2VLImageProcessorPil(size=pixels, patch_size=patch, merge_size=2, temporal_patch_size=2)
    return kind(seen, tokenizer, chat_template=tokenizer.chat_template)


def qwen2_vl() -> Components:
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    config = Qwen2_5_VLConfig(text_config=SMALL | MROPE | TOKENS, vision_config=vision, **numbers())
    return {
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config), "tokenizer": marked_tokenizer(),
        "processor": processor(SmallQwen2VLProcessor), "scheduler": flow(),
    }  # fmt: skip


def qwen3_vl(layers: int = 2) -> Components:
    config = images.qwen3_vl_config(layers)
    config.text_config.vocab_size = TOKENS["vocab_size"]
    config.vision_config.out_hidden_size = WIDTH
    for name, number in numbers().items():
        setattr(config, name, number)
    return {
        "text_encoder": Qwen3VLForConditionalGeneration(config), "tokenizer": marked_tokenizer(),
        "processor": processor(SmallQwen3VLProcessor, config.vision_config.patch_size), "scheduler": flow(),
    }  # fmt: skip


def qwen_image_edit() -> Components:
    """Images to edit are enlarged to a megapixel, so the VAE makes sixteen pixels a side one latent."""
    return {**popular.qwen_image(), **qwen2_vl(), "vae": sixteenfold_vae()}


def sixteenfold_vae(channels: int = 4, **changes: Any) -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1, 2], num_res_blocks=1,
        temperal_downsample=[False, False, False, True], latents_mean=[0.0] * channels, latents_std=[1.0] * channels,
        **changes,
    )  # fmt: skip


def qwen_image_layered() -> Components:
    """Eight channels, because images of as many as the latents have, four with their alpha, are taken for latents."""
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=32, out_channels=8, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), use_additional_t_cond=True, use_layer3d_rope=True,
    )  # fmt: skip
    return {**qwen2_vl(), "transformer": transformer, "vae": sixteenfold_vae(8, input_channels=4)}


def qwen_image21() -> Components:
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        context_in_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    return {**qwen3_vl(), "transformer": transformer, "vae": vae}


def longcat() -> Components:
    parts = qwen2_vl()
    return {**images.longcat(), **parts, "text_processor": parts["processor"]}


def nucleus() -> Components:
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), mlp_ratio=2.0,
        dense_moe_strategy="leave_first_block_dense", num_experts=4, moe_intermediate_dim=32, capacity_factors=2.0,
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if "experts" in name:  # left empty by their class
            parameter.data.normal_(std=0.1)
    return {**qwen3_vl(layers=8), "transformer": transformer, "vae": images.qwen_vae()}


def bria_fibo2() -> Components:
    transformer = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, patch_size=2, dim=WIDTH, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=3 * WIDTH,
        injection_layer_ids=(0, 1, 1, 2, 2), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8,
        gist_step=4, axes_dims=(4, 4, 8), axes_lens=(512, 64, 64),
    )  # fmt: skip
    return {**qwen3_vl(layers=36), "transformer": transformer, "vae": images.flux2_vae()}


def dreamlite() -> Components:
    unet = diffusers.DreamLiteUNetModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=WIDTH, attention_head_dim=16,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"), ff_mult=2,
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), norm_num_groups=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip
    return {**qwen3_vl(), "unet": unet, "vae": vae}


def joyimage(kind: Any) -> Components:
    transformer = kind(
        in_channels=16, out_channels=16, hidden_size=32, num_attention_heads=2, text_dim=WIDTH, num_layers=2,
        mlp_width_ratio=2.0, rope_dim_list=[4, 6, 6],
    )  # fmt: skip
    return {**qwen3_vl(), "transformer": transformer, "vae": wan_vae()}


DONORS = {
    "qwen_image_edit": qwen_image_edit,
    "qwen_image_layered": qwen_image_layered,
    "qwen_image21": qwen_image21,
    "longcat": longcat,
    "nucleus": nucleus,
    "bria_fibo2": bria_fibo2,
    "dreamlite": dreamlite,
    "joyimage": lambda: joyimage(diffusers.JoyImageEditTransformer3DModel),
    "joyimage_plus": lambda: joyimage(diffusers.JoyImageEditPlusTransformer3DModel),
}
