"""The pipelines' networks, untrained."""

from __future__ import annotations

WIDTHS = (64, 128, 192)
LATENT_CHANNELS = 8
TEXT_WIDTH = 128
POOLED_WIDTH = 128
ATTRIBUTE_TOKENS = 4  # added to the transformer's caption, each with its own projection of the pooled text
GATES = [2, 5]  # rows of a PixArt block's table: shift, scale, gate of attention, then of the MLP


def build_unet():
    """`UNet2DConditionModel` on [batch, 8, 8, 8] latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[2, 4, 6],  # diffusers reads this as the number of heads: 32 wide each
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * 32,
        norm_num_groups=16,
    )


def build_poster_unet():
    """`UNet2DConditionModel` on [batch, 12, 16, 16] latents; most weights are in transformers on 8x8 places.

    Two levels stand for SDXL's last two, three transformer layers at the deepest for its ten.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 192),
        layers_per_block=1,
        transformer_layers_per_block=[1, 3],
        attention_head_dim=[3, 6],  # diffusers reads this as the number of heads: 32 wide each
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * 32,
        norm_num_groups=16,
    )


def build_transformer(width: int = 192, depth: int = 6):
    """`PixArtTransformer2DModel` on [batch, 8, 8, 8] latents, one token per place."""
    from diffusers import PixArtTransformer2DModel

    network = PixArtTransformer2DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=depth,
        cross_attention_dim=width,
        sample_size=8,
        patch_size=1,
        caption_channels=2 * TEXT_WIDTH + ATTRIBUTE_TOKENS * POOLED_WIDTH,
    )
    _open_gates(network)
    return network


def build_mixture(width: int = 128, depth: int = 4, experts: int = 8):
    """Class-conditional `DiTMoE` on [batch, 8, 8, 8] latents, one token per place, two experts per token."""
    from vqcompress.models.dit_moe import DiTMoE
    from vqcompress.models.modulation import adaln_zero_
    from vqcompress.shapes.classes import CLASSES

    network = DiTMoE(
        input_size=8,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        hidden_size=width,
        depth=depth,
        num_heads=width // 32,
        mlp_ratio=1,
        num_classes=len(CLASSES),
        num_experts=experts,
        learn_sigma=False,
        use_flash_attn=True,  # the layout of the releases that are rectified flows
    )
    adaln_zero_(network)
    return network


def _open_gates(network) -> None:
    """Start without modulation and with gates of one; diffusers draws the table at random, with gates around zero."""
    import torch

    with torch.no_grad():
        for part in (network.adaln_single.linear, network.proj_out):
            part.weight.zero_()
            part.bias.zero_()
        network.scale_shift_table.zero_()
        for block in network.transformer_blocks:
            block.scale_shift_table.zero_()
            block.scale_shift_table[GATES] = 1.0


def build_text_encoders(tokenizer):
    """The two CLIP text encoders: hidden states 128 wide each, the second with a 128-wide projection."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return CLIPTextModel(_text_config(tokenizer)), CLIPTextModelWithProjection(_text_config(tokenizer))


def build_scheduler():
    """Euler sampling of a v-predicting model."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.02,  # larger than SDXL's .012, which leaves a flat background visible through the noise
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def _text_config(tokenizer):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=3,  # SDXL reads the last but one
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
