"""Tiny components of pipelines around a UNet: guided by an image, in pixels, in several stages."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from transformers import (
    CLIPTextModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
)

from tests.architectures import tiny_pipelines
from tests.architectures.donors.parts import WIDTH, Components, image_processor, t5, vision


def sd_unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    usual: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 2, "norm_num_groups": 8,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": WIDTH,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**usual | changes)


def sd15(**changes: Any) -> Components:
    return {**tiny_pipelines.sd15().components, "unet": sd_unet(**changes)}


def sdxl(**changes: Any) -> Components:
    parts = dict(tiny_pipelines.sdxl().components)
    config = {key: value for key, value in parts["unet"].config.items() if not key.startswith("_")}
    return {**parts, "unet": diffusers.UNet2DConditionModel(**config | changes)}


def guided(parts: Components) -> Components:
    """With control networks and an adapter of the UNet's size; images are halved as the VAE halves them."""
    unet, smaller = parts["unet"], {"conditioning_embedding_out_channels": (16, 32)}
    adapter = diffusers.T2IAdapter(3, [32, 64], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    return {
        **parts, "controlnet": diffusers.ControlNetModel.from_unet(unet, **smaller), "adapter": adapter,
    }  # fmt: skip


def guided_sdxl() -> Components:
    adapter = diffusers.T2IAdapter(
        3, [32, 64, 64], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
    )
    return {**guided(sdxl()), "adapter": adapter}


def united() -> Components:
    parts = sdxl()
    same = (
        *("block_out_channels", "layers_per_block", "down_block_types", "transformer_layers_per_block"),
        *("attention_head_dim", "cross_attention_dim", "norm_num_groups", "use_linear_projection"),
        *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    )
    controlnet = diffusers.ControlNetUnionModel(
        **{name: parts["unet"].config[name] for name in same}, conditioning_embedding_out_channels=(16, 32),
        num_trans_channel=32, num_trans_head=2, num_proj_channel=32,
    )  # fmt: skip
    return {**parts, "controlnet": controlnet}


def lcm(parts: Components) -> Components:
    return {**parts, "scheduler": diffusers.LCMScheduler()}


def upscaling() -> Components:
    return {**sd15(in_channels=7, num_class_embeds=1000), "low_res_scheduler": diffusers.DDPMScheduler()}


def latent_upscaling() -> Components:
    unet = diffusers.UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=[32, 32, 64, 64],
        layers_per_block=1, time_cond_proj_dim=160, conv_in_kernel=1, conv_out_kernel=1, in_channels=8,
        cross_attention_dim=WIDTH,
        out_channels=5, down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3), mid_block_type=None,
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"), resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu",
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    return {**tiny_pipelines.sd15().components, "unet": unet, "scheduler": scheduler}


def depth() -> Components:
    config = DPTConfig(
        image_size=32, patch_size=16, hidden_size=WIDTH, num_hidden_layers=4, backbone_out_indices=(0, 1, 2, 3),
        num_attention_heads=2, intermediate_size=WIDTH, is_hybrid=False, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )  # fmt: skip
    processor = DPTImageProcessorPil(size={"height": 32, "width": 32})
    return {
        **sd15(in_channels=5), "depth_estimator": DPTForDepthEstimation(config), "feature_extractor": processor
    }  # fmt: skip


def variation() -> Components:
    return {**sd15(), "image_encoder": vision(projected=True), "feature_extractor": image_processor()}


def animated(**changes: Any) -> Components:
    parts = {**tiny_pipelines.sd15().components}
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=2
    )
    sparse = diffusers.SparseControlNetModel(
        block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=WIDTH, conditioning_embedding_out_channels=(16, 32), norm_num_groups=8,
        attention_head_dim=2, motion_num_attention_heads=2, use_simplified_condition_embedding=False,
        conditioning_channels=3,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return {**guided(parts), "motion_adapter": adapter, "scheduler": scheduler} | changes | {"sparse": sparse}


def animated_sparsely() -> Components:
    parts = animated()
    return {**parts, "controlnet": parts["sparse"]}


def animated_sdxl() -> Components:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8,
        motion_num_attention_heads=2, use_motion_mid_block=False,
    )  # fmt: skip
    parts = tiny_pipelines.sdxl().components
    return {**parts, "motion_adapter": adapter, "scheduler": diffusers.DDIMScheduler(clip_sample=False)}


def video_diffusion() -> Components:
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=WIDTH,
        num_attention_heads=2, projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=700.0, beta_schedule="scaled_linear",
    )  # fmt: skip
    return {
        "unet": unet, "vae": vae, "scheduler": scheduler, "image_encoder": vision(projected=True, image_size=224),
        "feature_extractor": image_processor(),
    }  # fmt: skip


def in_pixels(channels: int = 3, **changes: Any) -> Components:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(32, 64), in_channels=channels, out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=WIDTH, encoder_hid_dim=WIDTH,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=8,
        addition_embed_type="text", addition_embed_type_num_heads=2, cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift", act_fn="gelu", norm_num_groups=8, **changes,
    )  # fmt: skip
    schedule = {
        "beta_schedule": "squaredcos_cap_v2", "thresholding": True, "variance_type": "learned_range"
    }  # fmt: skip
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return {
        **t5(), "unet": unet, "scheduler": diffusers.DDPMScheduler(**schedule), "watermarker": IFWatermarker(),
        "image_noising_scheduler": noising,
    }  # fmt: skip


def finer() -> Components:
    return in_pixels(6, class_embed_type="timestep")


def movq() -> diffusers.VQModel:
    return diffusers.VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), in_channels=3, out_channels=3, layers_per_block=1,
        latent_channels=4, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    )  # fmt: skip


def kandinsky3() -> Components:
    unet = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=32, groups=8, attention_head_dim=8, layers_per_block=2,
        block_out_channels=(32, 64), cross_attention_dim=WIDTH, encoder_hid_dim=WIDTH,
    )  # fmt: skip
    return {**t5(), "unet": unet, "movq": movq(), "scheduler": diffusers.DDPMScheduler(clip_sample=True)}


def prior(tokenizer: Any) -> Components:
    network = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=2, num_embeddings=12,
        additional_embeddings=4,
    )  # fmt: skip
    network.clip_std.data.fill_(1.0)
    return {
        "prior": network, "image_encoder": vision(projected=True), "image_processor": image_processor(),
        "text_encoder": CLIPTextModelWithProjection(tiny_pipelines.clip_config(tokenizer)), "tokenizer": tokenizer,
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
    }  # fmt: skip


def kandinsky22_unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    usual: dict[str, Any] = {
        "in_channels": 4, "out_channels": 8, "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "encoder_hid_dim": WIDTH,
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "layers_per_block": 1,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "block_out_channels": (32, 64), "attention_head_dim": 8,
        "cross_attention_dim": WIDTH, "resnet_time_scale_shift": "scale_shift", "norm_num_groups": 8,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**usual | changes)


def kandinsky22(**changes: Any) -> Components:
    parts = prior(tiny_pipelines.clip_tokenizer())
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, thresholding=False
    )
    combined = {f"prior_{name}": part for name, part in parts.items()}
    return {
        **combined, "prior_prior": parts["prior"], "unet": kandinsky22_unet(**changes), "movq": movq(),
        "scheduler": scheduler,
    }  # fmt: skip


def kandinsky22_prior() -> Components:
    return prior(tiny_pipelines.clip_tokenizer())


def latent_diffusion() -> Components:
    parts = t5()
    return {
        "vqvae": tiny_pipelines.vae(), "bert": parts["text_encoder"], "tokenizer": parts["tokenizer"],
        "unet": sd_unet(), "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }  # fmt: skip


def finer_latents() -> Components:
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=6, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    vqvae = diffusers.VQModel(
        block_out_channels=(16,), layers_per_block=1, latent_channels=3, norm_num_groups=8, num_vq_embeddings=12,
    )  # fmt: skip
    return {"unet": unet, "vqvae": vqvae, "scheduler": diffusers.DDIMScheduler()}


def unclip() -> Components:
    tokenizer = tiny_pipelines.clip_tokenizer()
    first = {f"prior_{name}": part for name, part in prior(tokenizer).items()}
    unet = sd_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH)
    embedded = diffusers.DDPMScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0,
        beta_schedule="squaredcos_cap_v2",
    )  # fmt: skip
    return {
        **sd15(), **first, "prior": first["prior_prior"], "prior_scheduler": embedded, "unet": unet,
        "image_normalizer": normalizer(), "image_encoder": vision(projected=True),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "feature_extractor": image_processor(),
    }  # fmt: skip


def normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=WIDTH)


def cascade_unet(**changes: Any) -> diffusers.StableCascadeUNet:
    usual: dict[str, Any] = {
        "conditioning_dim": 32, "block_out_channels": (32, 32), "num_attention_heads": (2, 2), "patch_size": 1,
        "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "switch_level": (False,),
        "clip_text_in_channels": WIDTH, "clip_text_pooled_in_channels": WIDTH, "dropout": (0.0, 0.0),
        "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1), "timestep_ratio_embedding_dim": 16,
        "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
    }  # fmt: skip
    return diffusers.StableCascadeUNet(**usual | changes)


def cascade() -> Components:
    tokenizer = tiny_pipelines.clip_tokenizer()
    text = CLIPTextModelWithProjection(tiny_pipelines.clip_config(tokenizer))
    first = cascade_unet(in_channels=4, out_channels=4, clip_image_in_channels=WIDTH)
    second = cascade_unet(
        in_channels=4, out_channels=4, effnet_in_channels=4, patch_size=2, timestep_conditioning_type=("sca",)
    )
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    vqgan = PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16)
    shared = {"text_encoder": text, "tokenizer": tokenizer, "scheduler": diffusers.DDPMWuerstchenScheduler()}
    return {
        **shared, **{f"prior_{name}": part for name, part in shared.items()}, "prior": first, "prior_prior": first,
        "decoder": second, "vqgan": vqgan,
    }  # fmt: skip


DONORS = {
    "guided_sd15": lambda: guided(sd15()),
    "guided_sdxl": guided_sdxl,
    "united_sdxl": united,
    "lcm": lambda: lcm(sd15(time_cond_proj_dim=32)),
    "pix2pix_sd15": lambda: sd15(in_channels=8),
    "pix2pix_sdxl": lambda: sdxl(in_channels=8),
    "upscaling": upscaling,
    "latent_upscaling": latent_upscaling,
    "depth": depth,
    "variation": variation,
    "animated": animated,
    "animated_sparsely": animated_sparsely,
    "animated_sdxl": animated_sdxl,
    "video_diffusion": video_diffusion,
    "in_pixels": in_pixels,
    "finer_pixels": finer,
    "kandinsky3": kandinsky3,
    "kandinsky22": kandinsky22,
    "kandinsky22_hint": lambda: kandinsky22(in_channels=8, addition_embed_type="image_hint"),
    "kandinsky22_inpaint": lambda: kandinsky22(in_channels=9),
    "kandinsky22_prior": kandinsky22_prior,
    "latent_diffusion": latent_diffusion,
    "finer_latents": finer_latents,
    "unclip": unclip,
    "cascade": cascade,
}
