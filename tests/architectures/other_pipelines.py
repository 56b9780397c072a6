"""Pipelines of diffusers that only the generic description knows, and PixArt-Sigma, as small as they come."""

from __future__ import annotations

import string

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import BertConfig, BertModel, BertTokenizer, T5Config, T5EncoderModel, T5Tokenizer, UMT5Config
from transformers import UMT5EncoderModel as UMT5


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=16)


def wan() -> WanPipeline:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    encoder = UMT5(UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2))
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2,
        rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return WanPipeline(tokenizer, encoder, vae, FlowMatchEulerDiscreteScheduler(), transformer)


def hunyuan() -> HunyuanDiTPipeline:
    torch.manual_seed(0)
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    letters += ["##" + letter for letter in string.ascii_lowercase]
    bert = BertTokenizer(vocab={token: index for index, token in enumerate(letters)}, model_max_length=77)
    t5 = t5_tokenizer()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=2, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16,
    )  # fmt: skip
    text = BertConfig(
        vocab_size=len(letters), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    second = T5Config(vocab_size=len(t5), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    return HunyuanDiTPipeline(
        vae, BertModel(text), bert, transformer, DDPMScheduler(prediction_type="v_prediction"), None, None,
        requires_safety_checker=False, text_encoder_2=T5EncoderModel(second), tokenizer_2=t5,
    )  # fmt: skip


def pixart_sigma() -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=1, sample_size=8,
        caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    return PixArtSigmaPipeline(tokenizer, T5EncoderModel(config), vae, transformer, DPMSolverMultistepScheduler())


OTHER = {"wan": wan, "hunyuan": hunyuan, "pixart_sigma": pixart_sigma}
