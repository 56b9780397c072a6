"""Tiny components of further families that make videos."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
)
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from tests.architectures import tiny_pipelines
from tests.architectures.donors import popular
from tests.architectures.donors.parts import (
    SMALL,
    WIDTH,
    Components,
    byte_tokenizer,
    eightfold_vae,
    flow,
    gemma2,
    image_processor,
    qwen_vl,
    t5,
    umt5,
    vision,
    wan_vae,
)

WAN_BLOCKS: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 24, "text_dim": WIDTH, "freq_dim": 32, "ffn_dim": 64,
    "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def allegro() -> Components:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=48, sample_width=8, sample_height=8, sample_frames=8, caption_channels=WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4, latent_channels=4,
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    vae.enable_tiling()
    return {**t5(), "transformer": transformer, "vae": vae, "scheduler": diffusers.DDIMScheduler()}


def anyflow() -> Components:
    transformer = diffusers.AnyFlowTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=16, out_channels=16, cross_attn_norm=True, gate_value=0.25,
        deltatime_type="r", **WAN_BLOCKS,
    )  # fmt: skip
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)
    return {**umt5(), "transformer": transformer, "vae": wan_vae(), "scheduler": scheduler}


def anyflow_far() -> Components:
    transformer = diffusers.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2), compressed_patch_size=(1, 4, 4), full_chunk_limit=3, in_channels=16, out_channels=16,
        cross_attn_norm=True, gate_value=0.25, deltatime_type="r", chunk_partition=(1, 1), **WAN_BLOCKS,
    )  # fmt: skip
    return {**anyflow(), "transformer": transformer}


def chronoedit() -> Components:
    transformer = diffusers.ChronoEditTransformer3DModel(in_channels=36, out_channels=16, image_dim=WIDTH, **WAN_BLOCKS)
    return {
        **umt5(), "transformer": transformer, "vae": wan_vae(), "scheduler": flow(), "image_encoder": vision(),
        "image_processor": image_processor(),
    }  # fmt: skip


COSMOS: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "mlp_ratio": 2, "text_embed_dim": WIDTH,
    "adaln_lora_dim": 8, "max_size": (4, 32, 32), "patch_size": (1, 2, 2), "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": True, "extra_pos_embed_type": "learnable",
}  # fmt: skip


def cosmos(channels: int = 4) -> Components:
    transformer = diffusers.CosmosTransformer3DModel(in_channels=channels, out_channels=4, **COSMOS)
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8,) * 4, decode_block_out_channels=(8,) * 4,
        attention_resolutions=(8,), resolution=64, num_layers=1, patch_size=4, patch_type="haar",
        spatial_compression_ratio=4, temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = diffusers.EDMEulerScheduler(
        sigma_schedule="karras", sigma_data=0.5, final_sigmas_type="sigma_min", prediction_type="epsilon"
    )
    return {**t5(), "transformer": transformer, "vae": vae, "scheduler": scheduler, **unsafe()}


def cosmos2(channels: int = 16) -> Components:
    transformer = diffusers.CosmosTransformer3DModel(in_channels=channels, out_channels=16, **COSMOS)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    return {**t5(), "transformer": transformer, "vae": wan_vae(), "scheduler": scheduler, **unsafe()}


def cosmos25() -> Components:
    return {
        **cosmos2(17), "text_encoder": qwen_vl(), "tokenizer": byte_tokenizer(),
        "scheduler": diffusers.UniPCMultistepScheduler(),
    }  # fmt: skip


def unsafe() -> Components:
    """No guard: `cosmos_guardrail` isn't installed; pipelines take any module in its place."""
    return {"safety_checker": None}


def hunyuan_image_to_video() -> Components:
    parts = popular.hunyuan_video()
    transformer = popular.hunyuan_video_transformer(
        in_channels=2 * 4 + 1, guidance_embeds=False, image_condition_type="latent_concat"
    )
    seeing = {
        "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 336, "patch_size": 14,
    }  # fmt: skip
    text = LlavaConfig(
        text_config={"model_type": "llama", **SMALL}, vision_config=seeing, image_token_index=259, pad_token_id=0
    )
    return {
        **parts, "transformer": transformer, "text_encoder": LlavaForConditionalGeneration(text),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    }  # fmt: skip


def skyreels_hunyuan() -> Components:
    return {**popular.hunyuan_video(), "transformer": popular.hunyuan_video_transformer(in_channels=8)}


def framepack() -> Components:
    transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, text_embed_dim=WIDTH, pooled_projection_dim=WIDTH, rope_axes_dim=(4, 6, 6),
        has_image_proj=True, image_proj_dim=WIDTH, has_clean_x_embedder=True,
    )  # fmt: skip
    return {**popular.hunyuan_video(), **siglip("image_encoder"), "transformer": transformer}


def siglip(name: str) -> Components:
    config = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=16,
    )  # fmt: skip
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return {name: SiglipVisionModel(config), "feature_extractor": processor}


def hunyuan15_image() -> Components:
    return {**popular.hunyuan15(), **siglip("image_encoder")}


def kandinsky5(sees: bool, still: bool) -> Components:
    tokenizer = tiny_pipelines.clip_tokenizer()
    clip = tiny_pipelines.clip_config(tokenizer)
    clip.max_position_embeddings = 77
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=WIDTH, in_text_dim2=WIDTH, time_dim=32, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=64, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6), visual_cond=sees,
        attention_type="regular",
    )  # fmt: skip
    blocks = 4
    vae = eightfold_vae() if still else diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * blocks, down_block_types=("HunyuanVideoDownBlock3D",) * blocks,
        up_block_types=("HunyuanVideoUpBlock3D",) * blocks, layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": flow(), "text_encoder": qwen_vl(),
        "tokenizer": byte_tokenizer(), "text_encoder_2": CLIPTextModel(clip),
        "tokenizer_2": tokenizer,
    }  # fmt: skip


def latte() -> Components:
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=16, num_attention_heads=2, in_channels=4,
        out_channels=8, caption_channels=WIDTH, cross_attention_dim=32, attention_bias=True, video_length=4,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return {
        **t5(), "transformer": transformer, "vae": tiny_pipelines.vae(), "scheduler": diffusers.DDIMScheduler(),
    }  # fmt: skip


def ltx2(**changes: Any) -> Components:
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=16,
        audio_cross_attention_dim=32, num_layers=2, caption_channels=WIDTH, rope_double_precision=False,
        rope_type="split", **changes,
    )  # fmt: skip
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    connectors = LTX2TextConnectors(
        caption_channels=WIDTH, text_proj_in_factor=SMALL["num_hidden_layers"] + 1,
        video_connector_num_attention_heads=2, video_connector_attention_head_dim=16, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=1e4,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1, patch_size_t=1, decoder_causal=False,
    )  # fmt: skip
    audio = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2, resolution=32,
        latent_channels=2, norm_type="pixel", causality_axis="height", mid_block_add_attention=False, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=16, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    )  # fmt: skip
    seeing = {
        "model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    config = Gemma3Config(text_config={"model_type": "gemma3_text", **SMALL, "head_dim": 16}, vision_config=seeing)
    return {
        "transformer": transformer, "connectors": connectors, "vae": vae, "audio_vae": audio, "vocoder": vocoder,
        "scheduler": flow(), "tokenizer": byte_tokenizer(), "text_encoder": Gemma3ForConditionalGeneration(config),
    }  # fmt: skip


def mochi() -> Components:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=WIDTH, time_embed_dim=16, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    return {**t5(), "transformer": transformer, "vae": vae, "scheduler": flow()}


def motif_video() -> Components:
    transformer = diffusers.MotifVideoTransformer3DModel(
        in_channels=33, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=2, patch_size=1, text_embed_dim=WIDTH, image_embed_dim=WIDTH, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    text = T5Gemma2TextConfig(**SMALL, head_dim=16, max_position_embeddings=512, dropout_rate=0.0)
    seeing = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": wan_vae(), "scheduler": flow(), "tokenizer": byte_tokenizer(),
        "text_encoder": T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=seeing)),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=2.0),
        "feature_extractor": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    }  # fmt: skip


def sana_video() -> Components:
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=24, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=24, cross_attention_dim=48, caption_channels=WIDTH,
        sample_size=8, patch_size=(1, 2, 2), rope_max_seq_len=32, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    return {**gemma2(), "transformer": transformer, "vae": wan_vae(), "scheduler": flow()}


def skyreels(**changes: Any) -> Components:
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        **{"in_channels": 16, "out_channels": 16, "cross_attn_norm": True} | WAN_BLOCKS | changes
    )
    return {
        **umt5(), "transformer": transformer, "vae": wan_vae(), "image_encoder": vision(projected=True),
        "image_processor": image_processor(),
        "scheduler": diffusers.UniPCMultistepScheduler(flow_shift=5.0, use_flow_sigmas=True),
    }  # fmt: skip


def wan_animate() -> Components:
    transformer = diffusers.WanAnimateTransformer3DModel(
        in_channels=36, latent_channels=16, out_channels=16, image_dim=WIDTH, motion_encoder_size=16,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_style_dim=8, motion_dim=4,
        motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2, inject_face_latents_blocks=2,
        **WAN_BLOCKS,
    )  # fmt: skip
    return {
        **umt5(), "transformer": transformer, "vae": wan_vae(), "image_encoder": vision(),
        "image_processor": image_processor(), "scheduler": flow(),
    }  # fmt: skip


def helios(stages: int = 1) -> Components:
    transformer = diffusers.HeliosTransformer3DModel(
        in_channels=16, out_channels=16, rope_dim=(8, 8, 8), has_multi_term_memory_patch=True,
        guidance_cross_attn=True, zero_history_timestep=True, is_amplify_history=False,
        **{key: value for key, value in WAN_BLOCKS.items() if key != "rope_max_seq_len"},
    )  # fmt: skip
    scheduler = diffusers.HeliosScheduler(
        stage_range=[i / stages for i in range(stages + 1)], stages=stages, use_dynamic_shifting=True
    )
    return {**umt5(), "transformer": transformer, "vae": wan_vae(), "scheduler": scheduler}


def lucy() -> Components:
    parts = popular.wan()
    return {**parts, "transformer": popular.wan_transformer(in_channels=32, out_channels=16), "transformer_2": None}


DONORS = {
    "allegro": allegro,
    "anyflow": anyflow,
    "anyflow_far": anyflow_far,
    "chronoedit": chronoedit,
    "cosmos": cosmos,
    "cosmos_video": lambda: cosmos(5),
    "cosmos2": cosmos2,
    "cosmos2_video": lambda: cosmos2(17),
    "cosmos25": cosmos25,
    "hunyuan_image_to_video": hunyuan_image_to_video,
    "skyreels_hunyuan": skyreels_hunyuan,
    "framepack": framepack,
    "hunyuan15_image": hunyuan15_image,
    "kandinsky5": lambda: kandinsky5(False, False),
    "kandinsky5_still": lambda: kandinsky5(False, True),
    "kandinsky5_image": lambda: kandinsky5(True, False),
    "kandinsky5_edit": lambda: kandinsky5(True, True),
    "latte": latte,
    "ltx2": ltx2,
    "ltx25": lambda: ltx2(use_keyframes_abs_pos_embedding=True),
    "mochi": mochi,
    "motif_video": motif_video,
    "sana_video": sana_video,
    "skyreels": skyreels,
    "skyreels_image": lambda: skyreels(in_channels=36, image_dim=WIDTH),
    "wan_animate": wan_animate,
    "helios": helios,
    "helios_pyramid": lambda: helios(3),
    "lucy": lucy,
}
