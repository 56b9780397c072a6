"""Tiny components of pipelines around a transformer with a control network beside it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.architectures import other_pipelines, tiny_pipelines
from tests.architectures.donors import popular
from tests.architectures.donors.parts import WIDTH, Components, eightfold_vae


def alive(network: torch.nn.Module) -> Any:
    """With output layers that do not start at zero."""
    for name, parameter in network.named_parameters():
        if "controlnet" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def flux() -> Components:
    controlnet = diffusers.FluxControlNetModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    return {**tiny_pipelines.flux().components, "controlnet": alive(controlnet)}


def sd3(transformer_channels: int = 4, **changes: Any) -> Components:
    sizes: dict[str, Any] = {
        "sample_size": 8, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 64,
        "caption_projection_dim": 32, "pooled_projection_dim": 64, "pos_embed_max_size": 16,
    }  # fmt: skip
    parts = dict(tiny_pipelines.sd3().components)
    vae = (
        parts["vae"]
        if transformer_channels == 4
        else tiny_pipelines.vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)
    )
    channels = vae.config.latent_channels
    transformer = diffusers.SD3Transformer2DModel(
        in_channels=transformer_channels, out_channels=channels, num_layers=2, **sizes
    )
    controlnet = diffusers.SD3ControlNetModel(
        in_channels=channels, out_channels=channels, num_layers=1, **sizes | changes
    )
    return {**parts, "transformer": transformer, "controlnet": alive(controlnet), "vae": vae}


def hunyuan() -> Components:
    """Positions of this family count eight pixels to a latent, whatever the VAE does."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "patch_size": 2, "sample_size": 8,
        "hidden_size": 32, "cross_attention_dim": 32, "cross_attention_dim_t5": 32, "pooled_projection_dim": 16,
    }  # fmt: skip
    return {
        **other_pipelines.hunyuan().components, "vae": eightfold_vae(),
        "transformer": diffusers.HunyuanDiT2DModel(num_layers=4, **sizes),
        "controlnet": alive(diffusers.HunyuanDiT2DControlNetModel(transformer_num_layers=4, **sizes)),
    }  # fmt: skip


def qwen_image(extra: int = 0) -> Components:
    controlnet = diffusers.QwenImageControlNetModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), extra_condition_channels=extra,
    )  # fmt: skip
    return {**popular.qwen_image(), "controlnet": alive(controlnet)}


def sana() -> Components:
    controlnet = diffusers.SanaControlNetModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=16,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH,
        sample_size=32,
    )  # fmt: skip
    return {**popular.sana(), "controlnet": alive(controlnet)}


def sana_sprint() -> Components:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH,
        sample_size=32, qk_norm="rms_norm_across_heads", guidance_embeds=True,
    )  # fmt: skip
    return {**popular.sana(), "transformer": transformer, "scheduler": diffusers.SCMScheduler()}


def z_image(channels: int = 4) -> Components:
    parts = popular.z_image()
    controlnet = diffusers.ZImageControlNetModel(
        control_layers_places=[0, 1], control_refiner_layers_places=[0], control_in_dim=channels, dim=32,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2,
    )  # fmt: skip
    return {**parts, "controlnet": alive(controlnet)}


DONORS = {
    "flux_controlnet": flux,
    "sd3_controlnet": sd3,
    "sd3_inpaint": lambda: sd3(16),
    "sd3_controlnet_inpaint": lambda: sd3(extra_conditioning_channels=1),
    "hunyuan_controlnet": hunyuan,
    "qwen_image_controlnet": qwen_image,
    "qwen_image_controlnet_inpaint": lambda: qwen_image(4),
    "sana_controlnet": sana,
    "sana_sprint": sana_sprint,
    "z_image_controlnet": z_image,
    "z_image_controlnet_inpaint": lambda: z_image(9),
}
