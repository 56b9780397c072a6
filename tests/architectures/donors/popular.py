"""Tiny components of the families that people run today."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers import (
    ByT5Tokenizer,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from tests.architectures import other_pipelines, tiny_pipelines
from tests.architectures.donors.parts import (
    MROPE,
    SMALL,
    WIDTH,
    Components,
    byt5,
    byte_tokenizer,
    flow,
    gemma2,
    image_processor,
    image_vae,
    qwen_vl,
    t5,
    vision,
)


def wan_transformer(**changes: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2,
        rope_max_seq_len=32, **changes,
    )  # fmt: skip


def wan() -> Components:
    parts = other_pipelines.wan().components
    return {**parts, "scheduler": flow(), "transformer": wan_transformer(), "transformer_2": wan_transformer()}


def wan_pair() -> Components:
    """As Wan 2.2 has them: the second denoiser takes the noise below the boundary."""
    return {**wan(), "boundary_ratio": 0.9}


def wan_image() -> Components:
    changes = {"in_channels": 36, "out_channels": 16}
    return {
        **wan(), "transformer": wan_transformer(**changes, image_dim=WIDTH), "transformer_2": None,
        "image_encoder": vision(), "image_processor": image_processor(),
    }  # fmt: skip


def wan_vace() -> Components:
    transformer = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2,
        rope_max_seq_len=32, vace_layers=[0], vace_in_channels=96,
    )  # fmt: skip
    return {**wan(), "transformer": transformer, "transformer_2": None}


def qwen_image(transformer_channels: int = 16) -> Components:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=transformer_channels, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": qwen_vl(),
        "tokenizer": byte_tokenizer(),
    }  # fmt: skip


def z_image() -> Components:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[4, 4, 8], axes_lens=[512, 64, 64],
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": image_vae(), "scheduler": flow(), "tokenizer": byte_tokenizer(),
        "text_encoder": Qwen3Model(Qwen3Config(**SMALL, head_dim=16)),
    }  # fmt: skip


def z_image_omni() -> Components:
    """Text and, where one is given, an image that SigLIP reads too."""
    parts = z_image()
    transformer = diffusers.ZImageTransformer2DModel.from_config(parts["transformer"].config, siglip_feat_dim=WIDTH)
    seeing = Siglip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, patch_size=16,
        num_patches=16,
    )  # fmt: skip
    processor = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16)
    return {
        **parts, "transformer": transformer, "siglip": Siglip2VisionModel(seeing), "siglip_processor": processor
    }  # fmt: skip


def flux(channels: int) -> Components:
    """With channels for an image beside the latents."""
    parts = dict(tiny_pipelines.flux().components)
    parts["transformer"] = diffusers.FluxTransformer2DModel(
        in_channels=channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    return parts


def flux2() -> Components:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "tokenizer": byte_tokenizer(),
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(**SMALL | {"num_hidden_layers": 31}, head_dim=16)),
    }  # fmt: skip


def chroma() -> Components:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32, approximator_layers=2,
        approximator_num_channels=16,
    )  # fmt: skip
    return {**t5(), "transformer": transformer, "vae": image_vae(), "scheduler": flow()}


def ltx() -> Components:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        decoder_spatio_temporal_scaling=(True, True, False, False),
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1,
    )  # fmt: skip
    return {**t5(), "transformer": transformer, "vae": vae, "scheduler": flow()}


def hunyuan_video_transformer(**changes: Any) -> diffusers.HunyuanVideoTransformer3DModel:
    usual: dict[str, Any] = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "guidance_embeds": True,
        "text_embed_dim": WIDTH, "pooled_projection_dim": WIDTH, "rope_axes_dim": (4, 6, 6),
    }  # fmt: skip
    return diffusers.HunyuanVideoTransformer3DModel(**usual | changes)


def hunyuan_video() -> Components:
    tokenizer = tiny_pipelines.clip_tokenizer()
    tokenizer.model_max_length = 77
    clip = tiny_pipelines.clip_config(tokenizer)
    clip.max_position_embeddings = 77
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=1, guidance_embeds=True, text_embed_dim=WIDTH, pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8,) * 4, layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "tokenizer": byte_tokenizer(),
        "text_encoder": LlamaModel(LlamaConfig(**SMALL)), "tokenizer_2": tokenizer,
        "text_encoder_2": CLIPTextModel(clip),
    }  # fmt: skip


def hunyuan15() -> Components:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, text_embed_dim=WIDTH, text_embed_2_dim=WIDTH, image_embed_dim=WIDTH,
        rope_axes_dim=(4, 6, 6), target_size=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "tokenizer": byte_tokenizer(),
        "text_encoder": Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**SMALL, **MROPE)), "tokenizer_2": ByT5Tokenizer(),
        "text_encoder_2": byt5(), "guider": diffusers.ClassifierFreeGuidance(guidance_scale=2.0),
    }  # fmt: skip


def hunyuan_image() -> Components:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=WIDTH, text_embed_2_dim=WIDTH, rope_axes_dim=(8, 8),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64, 64, 64), layers_per_block=1,
        spatial_compression_ratio=8, sample_size=128,
    )  # fmt: skip
    guider = diffusers.AdaptiveProjectedMixGuidance
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": qwen_vl(),
        "tokenizer": byte_tokenizer(), "text_encoder_2": byt5(), "tokenizer_2": ByT5Tokenizer(),
        "guider": guider(adaptive_projected_guidance_start_step=2),
        "ocr_guider": guider(adaptive_projected_guidance_start_step=3),
    }  # fmt: skip


def sana() -> Components:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH,
        sample_size=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    return {**gemma2(), "transformer": transformer, "vae": vae, "scheduler": flow()}


def lumina2() -> Components:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=2,
        multiple_of=16, axes_dim_rope=(8, 4, 4), axes_lens=(512, 64, 64), cap_feat_dim=WIDTH,
    )  # fmt: skip
    return {**gemma2(), "transformer": transformer, "vae": image_vae(), "scheduler": flow()}


def cogvideox(channels: int = 4) -> Components:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4, time_embed_dim=16,
        text_embed_dim=32, num_layers=2, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
        max_text_seq_length=226,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    return {**t5(), "transformer": transformer, "vae": vae, "scheduler": diffusers.CogVideoXDDIMScheduler()}


def unconditional() -> Components:
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    return {"unet": unet, "scheduler": diffusers.DDIMScheduler()}


DONORS = {
    "flux_control": lambda: flux(32),
    "flux_fill": lambda: flux(48),
    "visualcloze": lambda: {**flux(48), "resolution": 32},
    "wan": wan,
    "wan_pair": wan_pair,
    "wan_image": wan_image,
    "wan_vace": wan_vace,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "z_image_omni": z_image_omni,
    "flux2": flux2,
    "chroma": chroma,
    "ltx": ltx,
    "hunyuan_video": hunyuan_video,
    "hunyuan15": hunyuan15,
    "hunyuan_image": hunyuan_image,
    "sana": sana,
    "lumina2": lumina2,
    "cogvideox": cogvideox,
    "cogvideox_image": lambda: cogvideox(8),
    "unconditional": unconditional,
}
