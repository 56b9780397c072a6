"""A pipeline around each network of vqcompress.models, with random weights, that runs in a fraction of a second."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.clip_pixart_pipeline import ClipPixArtPipeline
from vqcompress.models.diffit_image import DiffiTImage
from vqcompress.models.diffit_latent import DiffiTLatent
from vqcompress.models.dit import DiT, SiT
from vqcompress.models.dit_moe import DiTMoE
from vqcompress.models.flag_dit import FlagDiT, FlagDiTLabels, LargeDiT
from vqcompress.models.linfusion import LinFusionUNet2DConditionModel
from vqcompress.models.lumina_pipeline import LuminaTextPipeline
from vqcompress.models.mdt import MDTv1, MDTv2
from vqcompress.models.next_dit import NextDiT, NextDiTLabels
from vqcompress.models.pixart import PixArt
from vqcompress.models.pt_dit import PTDiT
from vqcompress.models.pt_dit_pipeline import PTDiTPipeline

LABELLED = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 12}
ROWS = {"dim": 48, "n_layers": 2, "n_heads": 4, "multiple_of": 16, "qk_norm": True}
CAPTIONED = ROWS | {"cap_feat_dim": 32}
NUMBERED = ROWS | {"num_classes": 12}
PT_DIT = {
    "num_heads": 2, "head_dim": 24, "num_layers": 2, "cross_attention_dim": 48, "caption_channels": 32,
    "compress_ratios": (1, 2, 2), "proxy_compress_ratios": (1, 2, 2), "sample_size": 8,
}  # fmt: skip
VIDEO = PT_DIT | {"compress_ratios": (2, 2, 2), "proxy_compress_ratios": (1, 2, 2), "frame": 2}
MIXTURE = LABELLED | {"num_experts": 4}
PIXART = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "caption_channels": 32}
UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "attention_head_dim": 2,
    "cross_attention_dim": 32, "norm_num_groups": 8,
}  # fmt: skip


def randomized(network: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return network.eval()


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(8, 16), **blocks, latent_channels=4, norm_num_groups=4, sample_size=16
    ).eval()


def tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)


def text() -> tuple[T5Tokenizer, T5EncoderModel]:
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer()), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return tokenizer(), T5EncoderModel(config).eval()


def labelled(network: nn.Module, decoder: AutoencoderKL | None = None) -> DiffusionPipeline:
    return ClassConditionalPipeline.with_defaults(randomized(network), decoder or vae(), {7: "cock, rooster"})


def image_space() -> DiffusionPipeline:
    network = DiffiTImage(image_size=16, widths=(32, 32), blocks=(1, 1), window=4, num_classes=12)
    return ClassConditionalPipeline.with_defaults(randomized(network), None, {7: "cock, rooster"})


def pixart() -> DiffusionPipeline:
    network = randomized(PixArt(**PIXART))
    return PixArtAlphaPipeline(*text(), vae(), network.transformer, DPMSolverMultistepScheduler())


def clip_config(layers: int = 1) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=12, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        projection_dim=32,
    )  # fmt: skip


def clip_pixart() -> DiffusionPipeline:
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=2 * 32 + 3 * 32,
    )  # fmt: skip
    encoders = CLIPTextModel(clip_config(2)), CLIPTextModelWithProjection(clip_config(2))
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    return ClipPixArtPipeline(tokenizer(), *(e.eval() for e in encoders), randomized(network), scheduler, vae())


def linfusion() -> DiffusionPipeline:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae(), CLIPTextModel(clip_config()), tokenizer(), LinFusionUNet2DConditionModel(**UNET),
        DDIMScheduler(clip_sample=False, steps_offset=1), None, None, requires_safety_checker=False,
    )  # fmt: skip


OWN: dict[str, Callable[[], DiffusionPipeline]] = {
    "dit_official": lambda: labelled(DiT(**LABELLED)),
    "sit": lambda: labelled(SiT(**LABELLED)),
    "mdt_v1": lambda: labelled(MDTv1(**LABELLED)),
    "mdt_v2": lambda: labelled(MDTv2(**LABELLED | {"depth": 4}, decode_layer=2)),
    "dit_moe": lambda: labelled(DiTMoE(**MIXTURE)),
    "dit_moe_flow": lambda: labelled(DiTMoE(**MIXTURE, use_flash_attn=True)),
    "diffit_latent": lambda: labelled(DiffiTLatent(**LABELLED)),
    "diffit_image": image_space,
    "pixart_official": pixart,
    "pixart_clip": clip_pixart,
    "next_dit": lambda: LuminaTextPipeline(*text(), randomized(NextDiT(**CAPTIONED)), vae()),
    "next_dit_labels": lambda: labelled(NextDiTLabels(**NUMBERED)),
    "flag_dit": lambda: LuminaTextPipeline(*text(), randomized(FlagDiT(**CAPTIONED)), vae()),
    "flag_dit_labels": lambda: labelled(FlagDiTLabels(**NUMBERED)),
    "large_dit": lambda: labelled(LargeDiT(**NUMBERED)),
    "pt_dit": lambda: PTDiTPipeline(*text(), randomized(PTDiT(**PT_DIT)), vae()),
    "pt_dit_video": lambda: PTDiTPipeline(*text(), randomized(PTDiT(**VIDEO)), vae()),
    "linfusion": linfusion,
}
