"""Complete pipelines of every family with random weights, 16 pixels wide, that run in a fraction of a second."""

from __future__ import annotations

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaConfig,
    GemmaModel,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 12


def clip_tokenizer() -> CLIPTokenizer:
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], unk_token=END, bos_token=START,
        eos_token=END, pad_token=END, model_max_length=TOKENS,
    )  # fmt: skip


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=TOKENS)


def gemma_tokenizer() -> GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *string.ascii_lowercase]
    tokenizer = GemmaTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], mask_token="<unk>",
        model_max_length=TOKENS,
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def clip_config(tokenizer: CLIPTokenizer, width: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def t5_encoder(tokenizer: T5Tokenizer, width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=2 * width, num_layers=1, num_heads=2)
    )


def vae(channels: int = 4, **config) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4, sample_size=16, **config,
    )  # fmt: skip


def sdxl(second_width: int = 32, widths: tuple[int, int] = (32, 64)) -> StableDiffusionXLPipeline:
    """``second_width`` is that of the second text encoder; loaders of single files tell the two apart by it. ``widths``
    are those of the UNet's two levels."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2], attention_head_dim=[2, 2], cross_attention_dim=32 + second_width,
        norm_num_groups=8,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=second_width + 6 * 8,
    )  # fmt: skip
    first, second = clip_config(tokenizer), clip_config(tokenizer, second_width)
    return StableDiffusionXLPipeline(
        vae(), CLIPTextModel(first), CLIPTextModelWithProjection(second), tokenizer, tokenizer, unet,
        EulerDiscreteScheduler(beta_schedule="scaled_linear"), force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )  # fmt: skip


def sd15() -> StableDiffusionPipeline:
    torch.manual_seed(1)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, cross_attention_dim=32, norm_num_groups=8,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae(), CLIPTextModel(clip_config(tokenizer)), tokenizer, unet,
        DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        None, None, requires_safety_checker=False,
    )  # fmt: skip


def dit() -> DiTPipeline:
    torch.manual_seed(2)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    for block in transformer.transformer_blocks:  # trained gates are not near zero
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.2)
    return DiTPipeline(
        transformer, vae(), DDIMScheduler(clip_sample=False), {7: "cock, rooster", 207: "golden retriever"}
    )


def pixart() -> PixArtAlphaPipeline:
    torch.manual_seed(3)
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2, sample_size=8,
        caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        tokenizer, t5_encoder(tokenizer), vae(), transformer, DPMSolverMultistepScheduler(beta_schedule="linear")
    )


def lumina() -> LuminaPipeline:
    torch.manual_seed(4)
    tokenizer = gemma_tokenizer()
    encoder = GemmaModel(
        GemmaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, pad_token_id=0,
        )
    )  # fmt: skip
    transformer = LuminaNextDiT2DModel(
        sample_size=8, hidden_size=64, num_layers=2, num_attention_heads=4, num_kv_heads=2, multiple_of=16,
        cross_attention_dim=32,
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():  # gates start at zero and would hide the text
        if name.endswith("gate") or name == "pad_token":  # which diffusers leaves as memory was
            torch.nn.init.normal_(parameter)
    return LuminaPipeline(transformer, FlowMatchEulerDiscreteScheduler(), vae(), encoder, tokenizer)


def sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(5)
    tokenizer, t5 = clip_tokenizer(), t5_tokenizer()
    config = clip_config(tokenizer)
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=8,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(),
        vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        CLIPTextModelWithProjection(config), tokenizer, CLIPTextModelWithProjection(config), tokenizer,
        t5_encoder(t5, 64), t5,
    )  # fmt: skip


def flux() -> FluxPipeline:
    torch.manual_seed(6)
    tokenizer, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.1), CLIPTextModel(clip_config(tokenizer)), tokenizer,
        t5_encoder(t5), t5, transformer,
    )  # fmt: skip
    pipeline.default_sample_size = 8
    return pipeline


TINY = {
    "sdxl": sdxl,
    "sd15": sd15,
    "dit": dit,
    "pixart": pixart,
    "lumina": lumina,
    "sd3": sd3,
    "flux": flux,
}
