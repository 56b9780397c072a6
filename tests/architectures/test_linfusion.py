"""A LinFusion pipeline is a UNet pipeline: its new matrices are planned, packed and reopened."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, T5Tokenizer

import vqcompress
from vqcompress.architectures import architecture_of
from vqcompress.models.linfusion import LinFusionUNet2DConditionModel

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}


def linfusion() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 16), **blocks, latent_channels=4, norm_num_groups=4, sample_size=16)
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    unet = LinFusionUNet2DConditionModel(**UNET)
    return StableDiffusionPipeline(
        vae, CLIPTextModel(config), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def test_all_of_the_linear_attention_is_quantized() -> None:
    pipeline = linfusion()
    plans = architecture_of(pipeline).layers(pipeline, "unet")
    of_attention = {plan.name: plan.kept for plan in plans if ".attn1." in plan.name}
    assert len(of_attention) == 4 * 8
    assert {name.split(".attn1.")[1] for name in of_attention} == {
        "to_q", "to_k", "to_v", "to_out.0", "to_q_.0", "to_q_.3", "to_k_.0", "to_k_.3",
    }  # fmt: skip
    assert not any(of_attention.values())


def test_packed_folder_opens_and_draws_the_same(tmp_path: Path) -> None:
    pipeline = linfusion()
    vqcompress.quantize(pipeline, tmp_path / "packed", method="rtn", bits=4)
    opened = DiffusionPipeline.from_pretrained(tmp_path / "packed")
    assert isinstance(opened.unet, LinFusionUNet2DConditionModel)
    assert opened.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k_[3].weight.dtype == torch.int8
    size = {"height": 16, "width": 16, "steps": 2, "output_type": "latent"}
    first, second = (architecture_of(p).sample(p, ["a cat"], seeds=[1], **size) for p in (pipeline, opened))
    assert first.equal(second)
