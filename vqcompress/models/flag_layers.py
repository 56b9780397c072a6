"""Layers shared by Flag-DiT, Large-DiT and Next-DiT (arXiv 2405.05945, 2406.18583), with their official names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from vqcompress.models.rotary import Table, rotate

# The condition (time plus text or label) is never wider than this.
WIDEST_CONDITION = 1024


def condition_width(width: int) -> int:
    return min(width, WIDEST_CONDITION)


def hidden_width(width: int, multiple_of: int, multiplier: float | None) -> int:
    """Two thirds of 4·width, times ``multiplier``, rounded up to a multiple of ``multiple_of``."""
    hidden = int(2 * 4 * width / 3)
    hidden = hidden if multiplier is None else int(multiplier * hidden)
    return -(-hidden // multiple_of) * multiple_of


@dataclass(frozen=True)
class Text:
    """``features`` ``[batch, length, text width]``, normalised; ``mask`` bool ``[batch, length]``, True for text."""

    features: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Places:
    """Token positions: rotary ``table``, ``present`` (``[batch, tokens]`` bool or None), softmax ``scale`` or None."""

    table: Table
    present: Tensor | None = None
    scale: float | None = None


def proportional_scale(tokens: int, base_tokens: int, head_width: int) -> float:
    """Softmax scale that keeps attention over ``tokens`` as sharp as in training, with ``base_tokens``."""
    return math.sqrt(math.log(tokens, base_tokens) / head_width)


def _norm(width: int, wanted: bool) -> nn.Module:
    return nn.LayerNorm(width) if wanted else nn.Identity()


class FlagAttention(nn.Module):
    """Rotary self-attention with LayerNorm on whole queries and keys, plus gated attention to the text.

    ``kv_heads`` divides ``heads``: each key and value head serves ``heads / kv_heads`` neighbouring query heads.
    ``text_width`` None means no text.
    """

    def __init__(self, width: int, heads: int, kv_heads: int | None, qk_norm: bool, text_width: int | None) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        key_width = width // heads * self.kv_heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = nn.Linear(width, key_width, bias=False), nn.Linear(width, key_width, bias=False)
        self.q_norm, self.k_norm = _norm(width, qk_norm), _norm(key_width, qk_norm)
        if text_width is not None:
            self.wk_y = nn.Linear(text_width, key_width, bias=False)
            self.wv_y = nn.Linear(text_width, key_width, bias=False)
            self.ky_norm = _norm(key_width, qk_norm)
            self.gate = nn.Parameter(torch.zeros(heads))

    def _keys(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.kv_heads, -1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float | None) -> Tensor:
        """Queries and keys are ``[batch, tokens, heads, head width]``, ``seen`` is ``[batch, keys]``.

        The result has the queries' shape.
        """
        mask = None if seen is None else seen[:, None, None, :]
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        shared = self.heads != self.kv_heads
        out = scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=shared)
        return out.transpose(1, 2)

    def forward(self, x: Tensor, places: Places, text: Text | None) -> Tensor:
        query = rotate(self.q_norm(self.wq(x)).unflatten(-1, (self.heads, -1)), places.table)
        key = rotate(self._keys(self.k_norm(self.wk(x))), places.table)
        out = self._attend(query, key, self._keys(self.wv(x)), places.present, places.scale)
        if text is not None:
            key, value = self.ky_norm(self.wk_y(text.features)), self.wv_y(text.features)
            read = self._attend(query, self._keys(key), self._keys(value), text.mask, None)
            out = out + read * self.gate.tanh()[:, None].to(read.dtype)
        return self.wo(out.flatten(-2))


class FlagFeedForward(nn.Module):
    """``w2(silu(w1 x) · w3 x)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


def flag_modulation(width: int, parts: int) -> nn.Sequential:
    """Condition ``[batch, min(width, 1024)]`` -> ``[batch, parts·width]``."""
    return nn.Sequential(nn.SiLU(), nn.Linear(condition_width(width), parts * width))


class FlagFinalLayer(nn.Module):
    """Tokens to patches. The condition shifts and scales (Flag, ``parts=2``) or only scales (Next, ``parts=1``)."""

    def __init__(self, width: int, outputs: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = flag_modulation(width, parts)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        *shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(self.parts, dim=-1)
        x = self.norm_final(x) * (1 + scale)
        return self.linear(x + shift[0] if shift else x)
