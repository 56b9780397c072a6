"""Tiny components of the families that people run today; pipelines of a family are built from one donor's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from tests.architectures import other_pipelines, tiny_pipelines

Components = dict[str, Any]
WIDTH = 32
CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}"
    "{% endif %}{% endfor %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(["<pad>", *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<pad>", bos_token="<pad>", model_max_length=512
    )
    tokenizer.chat_template = CHAT
    return tokenizer


SMALL = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 260,
}  # fmt: skip
MROPE = {
    "rope_scaling": {"mrope_section": [2, 2, 4], "rope_type": "default", "type": "default"}, "rope_theta": 1e6
}  # fmt: skip


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=SMALL | MROPE, vision_config=vision))


def byt5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=384, d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2))


def image_vae(channels: int = 4) -> AutoencoderKL:
    return tiny_pipelines.vae(channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)


def vision(projected: bool = False) -> Any:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, projection_dim=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    return (CLIPVisionModelWithProjection if projected else CLIPVisionModel)(config)


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=5.0)


def t5() -> Components:
    tokenizer = tiny_pipelines.t5_tokenizer()
    return {"tokenizer": tokenizer, "text_encoder": tiny_pipelines.t5_encoder(tokenizer)}


def gemma2() -> Components:
    config = Gemma2Config(**SMALL, head_dim=16, pad_token_id=0, eos_token_id=0, bos_token_id=0)
    return {"tokenizer": byte_tokenizer(), "text_encoder": Gemma2Model(config)}


def wan_transformer(**changes: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2,
        rope_max_seq_len=32, **changes,
    )  # fmt: skip


def wan() -> Components:
    parts = other_pipelines.wan().components
    return {**parts, "scheduler": flow(), "transformer": wan_transformer(), "transformer_2": wan_transformer()}


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


def motion() -> Components:
    parts = tiny_pipelines.sd15().components
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=2
    )
    return {**parts, "motion_adapter": adapter, "scheduler": diffusers.DDIMScheduler(clip_sample=False)}


def unconditional() -> Components:
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    return {"unet": unet, "scheduler": diffusers.DDIMScheduler()}


def of(build: Callable[[], Any]) -> Callable[[], Components]:
    return lambda: dict(build().components)


DONORS: dict[str, Callable[[], Components]] = {
    **{name: of(build) for name, build in tiny_pipelines.TINY.items()},
    "flux_control": lambda: flux(32),
    "flux_fill": lambda: flux(48),
    "hunyuan": of(other_pipelines.hunyuan),
    "wan": wan,
    "wan_image": wan_image,
    "wan_vace": wan_vace,
    "qwen_image": qwen_image,
    "z_image": z_image,
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
    "motion": motion,
    "unconditional": unconditional,
}
"""Name -> components with random weights, by their names in a pipeline."""


@torch.no_grad()
def components(name: str) -> Components:
    """A donor's components, the same at every call."""
    torch.manual_seed(0)
    parts = DONORS[name]()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return parts
