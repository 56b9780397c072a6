"""Self-attention over all tokens with a fused query-key-value layer, in the two layouts of official checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[n, tokens, 3·width] -> query, key, value, each [n, heads, tokens, width/heads]."""
    return qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """[n, heads, tokens, d] -> [n, tokens, heads·d]."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention with layers named ``qkv`` and ``proj`` (DiT, SiT, MDT, DiT-MoE S and B)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(join_heads(scaled_dot_product_attention(*split_heads(self.qkv(x), self.heads))))


class NormedSelfAttention(nn.Module):
    """Layers named ``Wqkv`` and ``out_proj``, and LayerNorm on each head's query and key (DiT-MoE XL and G)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(self.Wqkv(x), self.heads)
        # These models are trained and sampled with queries and keys rounded to float16.
        # Without the rounding, outputs are off by 6e-5.
        query, key = (t.to(torch.float16).to(value.dtype) for t in (self.q_norm(query), self.k_norm(key)))
        return self.out_proj(join_heads(scaled_dot_product_attention(query, key, value)))
