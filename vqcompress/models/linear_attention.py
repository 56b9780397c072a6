"""Generalized linear attention of LinFusion (Liu et al. 2024, arXiv 2409.02097, section 3.3), linear in the token count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqcompress.errors import UnsupportedError

# Keeps the quotient finite where a query meets no key; part of the trained function, not a safety margin.
DENOMINATOR_FLOOR = 1e-4


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``φ(q)(φ(k)ᵀv / N) / (φ(q)·mean φ(k) + 1e-4)`` with ``φ = elu + 1``.

    All ``[batch, heads, tokens, head width]``; the sums run over the N key tokens and are divided by N, so that
    the constant in the denominator means the same at every resolution. Half of 1/N goes to either factor:
    neither the sum nor its terms then leave the range of float16 at 16384 tokens.
    """
    query, key = torch.nn.functional.elu(query) + 1, torch.nn.functional.elu(key) + 1
    share = key.shape[-2] ** -0.5
    context = (key * share).transpose(-2, -1) @ (value * share)
    weight = query @ key.mean(dim=-2, keepdim=True).transpose(-2, -1)
    return query @ context / (weight + DENOMINATOR_FLOOR)


def residual_map(width: int, middle: int) -> nn.Sequential:
    """LinFusion's M: what is added to the tokens before the query or key projection."""
    return nn.Sequential(nn.Linear(width, middle), nn.LayerNorm(middle), nn.LeakyReLU(), nn.Linear(middle, width))


class LinearAttention(nn.Module):
    """Stands where diffusers has the self-attention ``attn1`` of a transformer block, under its parameter names.

    ``width``: channels of the tokens; ``heads`` divides it; ``middle``: inner width of the two residual maps.
    """

    def __init__(self, width: int, heads: int, middle: int | None = None, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=qkv_bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])
        self.to_q_, self.to_k_ = residual_map(width, middle or width), residual_map(width, middle or width)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """``[batch, tokens, width]`` to the same shape. Raises UnsupportedError for a mask or foreign keys."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UnsupportedError(
                "LinFusion's linear attention is unmasked self-attention: call the UNet without attention_mask, and "
                "mount LinFusion only on UNets whose attn1 is self-attention (only_cross_attention=False)."
            )
        query = self._heads(self.to_q(hidden_states + self.to_q_(hidden_states)))
        key = self._heads(self.to_k(hidden_states + self.to_k_(hidden_states)))
        mixed = linear_attention(query, key, self._heads(self.to_v(hidden_states)))
        return self.to_out[0](mixed.transpose(1, 2).flatten(-2))
