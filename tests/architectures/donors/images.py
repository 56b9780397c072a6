"""Tiny components of further families that draw images from text."""

from __future__ import annotations

import diffusers
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3Model,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.architectures import tiny_pipelines
from tests.architectures.donors.parts import (
    MROPE,
    SMALL,
    WIDTH,
    Components,
    byte_tokenizer,
    flow,
    image_vae,
    qwen_vl,
    t5,
    umt5,
    wan_vae,
)


def aura_flow() -> Components:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32, joint_attention_dim=WIDTH,
        pos_embed_max_size=256,
    )  # fmt: skip
    return {**umt5(), "transformer": transformer, "vae": image_vae(), "scheduler": flow()}


def bria() -> Components:
    transformer = diffusers.BriaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=None, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return {**t5(), "transformer": transformer, "vae": tiny_pipelines.vae(shift_factor=0.0), "scheduler": flow()}


def bria_fibo() -> Components:
    transformer = diffusers.BriaFiboTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH, pooled_projection_dim=None, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    sizes = SMALL | {"vocab_size": 128_001}  # an empty prompt is token 128 000
    text = SmolLM3ForCausalLM(SmolLM3Config(**sizes, pad_token_id=0, bos_token_id=0, eos_token_id=0))
    vae = wan_vae(in_channels=12, out_channels=12, patch_size=2, is_residual=True, scale_factor_spatial=16)
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": text,
        "tokenizer": byte_tokenizer(),
    }  # fmt: skip


def cogview3() -> Components:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        text_embed_dim=WIDTH, time_embed_dim=16, condition_dim=8, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return {
        **t5(), "transformer": transformer, "vae": tiny_pipelines.vae(),
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
    }  # fmt: skip


def cogview4(channels: int = 4) -> Components:
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=channels, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        text_embed_dim=WIDTH, time_embed_dim=16, condition_dim=8,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    text = GlmForCausalLM(GlmConfig(**SMALL, head_dim=16, pad_token_id=0, eos_token_id=0)).model
    return {
        "transformer": transformer, "vae": tiny_pipelines.vae(), "scheduler": scheduler, "text_encoder": text,
        "tokenizer": byte_tokenizer(starts=True),
    }  # fmt: skip


def ernie() -> Components:
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=WIDTH, num_attention_heads=2, num_layers=2, ffn_hidden_size=64, in_channels=16, out_channels=16,
        text_in_dim=WIDTH, rope_axes_dim=(4, 4, 8),
    )  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    text = Mistral3Config(text_config={"model_type": "mistral", **SMALL, "head_dim": 16}, vision_config=vision)
    return {
        "transformer": transformer, "vae": flux2_vae(), "scheduler": flow(), "text_encoder": Mistral3Model(text),
        "tokenizer": byte_tokenizer(),
    }  # fmt: skip


def flux2_vae() -> diffusers.AutoencoderKLFlux2:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip


def hidream() -> Components:
    clip, t5_tokenizer = tiny_pipelines.clip_tokenizer(), tiny_pipelines.t5_tokenizer()
    config = tiny_pipelines.clip_config(clip)
    config.max_position_embeddings = t5_tokenizer.model_max_length = 128
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, caption_channels=[WIDTH, WIDTH], text_emb_dim=64, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(8, 4, 4), max_resolution=(32, 32), llama_layers=(0, 1),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": image_vae(), "scheduler": flow(), "tokenizer": clip, "tokenizer_2": clip,
        "text_encoder": tiny_pipelines.CLIPTextModelWithProjection(config),
        "text_encoder_2": tiny_pipelines.CLIPTextModelWithProjection(config), "tokenizer_3": t5_tokenizer,
        "text_encoder_3": tiny_pipelines.t5_encoder(t5_tokenizer), "tokenizer_4": byte_tokenizer(),
        "text_encoder_4": LlamaForCausalLM(LlamaConfig(**SMALL)),
    }  # fmt: skip


def qwen3_vl_config(layers: int = 2) -> Qwen3VLConfig:
    vision = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    text = SMALL | {
        "num_hidden_layers": layers,
        "head_dim": 16,
        "rope_scaling": MROPE["rope_scaling"],
        "rope_theta": 1e6,
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision)


def krea2() -> Components:
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, timestep_embed_dim=16, text_hidden_dim=WIDTH, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(8, 4, 4), rope_theta=1000.0,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": qwen_vae(), "scheduler": flow(),
        "text_encoder": Qwen3VLModel(qwen3_vl_config()), "tokenizer": byte_tokenizer(),
        "text_encoder_select_layers": (0, 1),
    }  # fmt: skip


def qwen_vae() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def ideogram4() -> Components:
    def transformer() -> diffusers.Ideogram4Transformer2DModel:
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, intermediate_size=64,
            adaln_dim=32, llm_features_dim=13 * WIDTH, mrope_section=(4, 2, 2),
        )  # fmt: skip

    return {
        "transformer": transformer(), "unconditional_transformer": transformer(), "vae": flux2_vae(),
        "scheduler": flow(), "text_encoder": Qwen3VLModel(qwen3_vl_config(layers=36)), "tokenizer": byte_tokenizer(),
    }  # fmt: skip


def omnigen() -> Components:
    transformer = diffusers.OmniGenTransformer2DModel(
        hidden_size=WIDTH, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, num_layers=2,
        in_channels=4, time_step_dim=16, pad_token_id=0, vocab_size=260,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    return {
        "transformer": transformer, "vae": tiny_pipelines.vae(), "scheduler": scheduler, "tokenizer": byte_tokenizer(),
    }  # fmt: skip


def ovis() -> Components:
    transformer = diffusers.OvisImageTransformer2DModel(
        patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return {**qwen3(), "transformer": transformer, "vae": image_vae(), "scheduler": flow()}


def qwen3() -> Components:
    return {"text_encoder": Qwen3Model(Qwen3Config(**SMALL, head_dim=16)), "tokenizer": byte_tokenizer()}


def longcat() -> Components:
    transformer = diffusers.LongCatImageTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": image_vae(16), "scheduler": flow(), "text_encoder": qwen_vl(),
        "tokenizer": byte_tokenizer(), "text_processor": None,
    }  # fmt: skip


def prx(channels: int = 4) -> Components:
    transformer = diffusers.PRXTransformer2DModel(
        patch_size=2, in_channels=channels, context_in_dim=WIDTH, hidden_size=WIDTH, mlp_ratio=2.0, num_heads=2,
        depth=2, axes_dim=[8, 8],
    )  # fmt: skip
    return {**qwen3(), "transformer": transformer, "vae": tiny_pipelines.vae(), "scheduler": flow()}


def prx_pixel() -> Components:
    transformer = diffusers.PRXTransformer2DModel(
        patch_size=4, in_channels=3, context_in_dim=WIDTH, hidden_size=WIDTH, mlp_ratio=2.0, num_heads=2, depth=2,
        axes_dim=[8, 8], bottleneck_size=32, resolution_embeds=True,
    )  # fmt: skip
    return {**qwen3(), "transformer": transformer, "scheduler": flow()}


DONORS = {
    "aura_flow": aura_flow,
    "bria": bria,
    "bria_fibo": bria_fibo,
    "cogview3": cogview3,
    "cogview4": cogview4,
    "cogview4_control": lambda: cogview4(8),
    "ernie": ernie,
    "hidream": hidream,
    "krea2": krea2,
    "ideogram4": ideogram4,
    "omnigen": omnigen,
    "ovis": ovis,
    "longcat": longcat,
    "prx": prx,
    "prx_pixel": prx_pixel,
}
