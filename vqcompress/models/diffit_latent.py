"""DiffiT in latent space (arXiv 2312.02139, section 3.3): time-dependent self-attention instead of modulation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from vqcompress.models.attention import join_heads, split_heads
from vqcompress.models.embeddings import LabelEmbedder, PatchEmbedder, TimestepEmbedder, sincos_grid, unpatchify
from vqcompress.models.feed_forward import Mlp
from vqcompress.models.guidance import guided, power_cosine
from vqcompress.models.modulation import plain_norm
from vqcompress.models.network import Network
from vqcompress.models.official_weights import construct, load_strictly
from vqcompress.models.relative_positions import relative_bias, relative_position_index, table_rows

# Latents up to this size were sampled with growing guidance, larger ones with constant guidance.
_RAMPED_SIZE = 32


class TimeSelfAttention(nn.Module):
    """Each query, key and value is a projection of the token plus one of the condition (equations 3 to 5)."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.qkv_temb = nn.Linear(width, 3 * width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(window), heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        qkv = self.qkv(x) + self.qkv_temb(condition).unsqueeze(1)
        query, key, value = split_heads(qkv, self.heads)
        bias = relative_bias(self.relative_position_bias_table, self.window).to(query.dtype).unsqueeze(0)
        return self.proj(join_heads(scaled_dot_product_attention(query, key, value, attn_mask=bias)))


class DiffiTBlock(nn.Module):
    """Attention conditioned on the time, then an MLP without a condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, window: int):
        super().__init__()
        self.norm1 = plain_norm(width)
        self.attn = TimeSelfAttention(width, heads, window)
        self.norm2 = plain_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), condition)
        return x + self.mlp(self.norm2(x))


class PlainFinalLayer(nn.Module):
    """linear(SiLU(LN(x))), without a condition."""

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.norm_final = plain_norm(width)
        self.linear = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(silu(self.norm_final(x)))


class DiffiTLatent(Network):
    """Class-conditional DiffiT on latents; attention spans the whole grid (16² tokens at 256 px, 32² at 512).

    The released 256 and 512 models have depth 28. The default here is 30, as in the official class.
    ``forward(x [n, in_channels, s, s], t [n] in [0, 1000), y [n] labels)`` returns [n, C, s, s], where C is twice
    ``in_channels`` with ``learn_sigma``. Label ``num_classes`` is the null label.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 30,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ):
        super().__init__()
        grid = input_size // patch_size
        self.x_embedder = PatchEmbedder(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        self.pos_embed = nn.Parameter(sincos_grid(hidden_size, grid).unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(DiffiTBlock(hidden_size, num_heads, mlp_ratio, grid) for _ in range(depth))
        self.final_layer = PlainFinalLayer(hidden_size, patch_size, in_channels * (2 if learn_sigma else 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        condition = self.t_embedder(t, x.dtype) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        return unpatchify(self.final_layer(tokens), self.config["patch_size"])

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        cfg_scale: float,
        diffusion_steps: int = 1000,
        scale_pow: float = 4.0,
    ) -> Tensor:
        """Guided output for a batch of [conditional, null] halves; guidance is constant for latents above 32."""
        ramped = self.config["input_size"] <= _RAMPED_SIZE
        scale = power_cosine(t, cfg_scale, diffusion_steps, scale_pow) if ramped else cfg_scale
        return guided(lambda both: self(both, t, y), x, scale)


def diffit_latent_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> DiffiTLatent:
    """DiffiT with the weights of an nvidia/DiffiT checkpoint. Stored position indices are checked and dropped."""
    model = construct(DiffiTLatent, config)
    index = relative_position_index(model.config["input_size"] // model.config["patch_size"])
    places = (n for n, part in model.named_modules() if isinstance(part, TimeSelfAttention))
    return load_strictly(model, state_dict, rebuilt={f"{place}.relative_position_index": index for place in places})
