"""What donors share: tokenizers, text and image encoders, VAEs and schedulers, as small as they come."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.architectures import tiny_pipelines

Components = dict[str, Any]
WIDTH = 32
CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}"
    "{% endif %}{% endfor %}"
)


def byte_tokenizer(starts: bool = False) -> PreTrainedTokenizerFast:
    """Every byte is a token; with ``starts``, every text begins with one more."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(["<pad>", *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if starts:
        core.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
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


def eightfold_vae() -> AutoencoderKL:
    """Eight pixels a side to a latent, for pipelines that count on it."""
    return AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, shift_factor=0.1,
    )  # fmt: skip


def vision(projected: bool = False, image_size: int = 32) -> Any:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, projection_dim=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        image_size=image_size, patch_size=image_size // 2,
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


def umt5() -> Components:
    tokenizer = tiny_pipelines.t5_tokenizer()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": UMT5EncoderModel(config)}


def wan_vae(**changes: Any) -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **changes)
