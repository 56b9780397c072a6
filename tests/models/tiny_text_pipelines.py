"""Our text pipelines with tiny random parts, for the tests of several rooms."""

from __future__ import annotations

import string

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from vqcompress.models.flag_dit import FlagDiT
from vqcompress.models.lumina_pipeline import LuminaTextPipeline
from vqcompress.models.next_dit import NextDiT
from vqcompress.models.pt_dit import PTDiT
from vqcompress.models.pt_dit_pipeline import PTDiTPipeline


def randomized(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return network.eval()


def vae() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), **blocks, latent_channels=4, norm_num_groups=4, sample_size=16)


def texts() -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return tokenizer, T5EncoderModel(config).eval()


def lumina(network: type = NextDiT) -> LuminaTextPipeline:
    torch.manual_seed(0)
    transformer = network(dim=48, n_layers=2, n_heads=4, multiple_of=16, cap_feat_dim=32)
    return LuminaTextPipeline(*texts(), randomized(transformer), vae())


def pt_dit(**arguments) -> PTDiTPipeline:
    torch.manual_seed(1)
    size = {"num_heads": 2, "head_dim": 24, "num_layers": 2, "cross_attention_dim": 48, "caption_channels": 32}
    windows = {"compress_ratios": (1, 2, 2), "proxy_compress_ratios": (1, 2, 2)}
    return PTDiTPipeline(*texts(), randomized(PTDiT(**size | windows | {"sample_size": 8} | arguments)), vae())


PIPELINES = {"next": lumina, "flag": lambda: lumina(FlagDiT), "pt_dit": pt_dit}
