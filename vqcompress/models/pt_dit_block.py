"""One block of PT-DiT (Wang et al. 2024, arXiv 2409.04005, section 3): proxy tokens, windows, text, feed-forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vqcompress.models.windows import Box, Windows, strided_means


@dataclass(frozen=True)
class BlockShape:
    """Widths and switches of a block. ``text_width``: of the text features; ``proxy_strides``: see strided_means."""

    width: int
    heads: int
    text_width: int
    bias: bool
    activation: str
    eps: float
    proxy_strides: Box
    shift_window: bool


@dataclass(frozen=True)
class BlockContext:
    """Inputs that all blocks of one call share.

    ``modulation``: ``[batch, 6, width]``, shift, scale and gate for attention, then for the feed-forward; ``text``:
    ``[batch, length, text_width]``; ``text_mask``: ``[batch, 1, 1, length]``, added to scores, or None; ``shift_mask``:
    ``[batch·windows, 1, volume, volume]`` bool.
    """

    windows: Windows
    modulation: Tensor
    text: Tensor
    text_mask: Tensor | None
    shift_mask: Tensor


class PTAttention(nn.Module):
    """Softmax attention from ``x`` to ``context``, with parameter names as in diffusers."""

    def __init__(self, width: int, heads: int, context_width: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k, self.to_v = (nn.Linear(context_width, width, bias=bias) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[n, tokens, width]`` and ``[n, keys, context_width]`` -> ``[n, tokens, width]``."""
        query, key, value = self._heads(self.to_q(x)), self._heads(self.to_k(context)), self._heads(self.to_v(context))
        out = scaled_dot_product_attention(query, key, value, mask)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


def tiled(parts: Tensor, windows: int) -> tuple[Tensor, ...]:
    """``[batch, n, width]`` -> n tensors ``[batch·windows, 1, width]``, in the order of the official network.

    Window r gets the modulation of sample ``r % batch``, but its tokens are those of sample ``r // windows``. So all
    samples of a batch must have the same timestep. With two timesteps in a batch, the published network mixes them,
    which changes its output by 25–33 %. We reproduce this, because the weights were released with this network.
    """
    return parts.repeat(windows, 1, 1).split(1, dim=1)


class PTDiTBlock(nn.Module):
    """The six steps of a block. The tokens are in windows: ``windowed`` is ``[batch·windows, volume, width]``."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        width, heads, bias = shape.width, shape.heads, shape.bias
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=shape.eps)
        self.proxy_attn1 = PTAttention(width, heads, width, bias)
        self.pvisual_attn2 = PTAttention(width, heads, width, bias)
        self.linear_1_visual = nn.Linear(width, width)
        self.attn1 = PTAttention(width, heads, width, bias)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        if shape.shift_window:
            self.attn3 = PTAttention(width, heads, width, bias)
            self.linear_2 = nn.Linear(width, width)
            self.proxy_scale_shift_table = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.attn2 = PTAttention(width, heads, shape.text_width, bias)
        self.ff = FeedForward(width, activation_fn=shape.activation)

    def _global(self, windowed: Tensor, windows: Windows) -> Tensor:
        """Steps 1 and 2: proxies attend to each other, then all tokens attend to the proxies.

        Neither step depends on the order of the proxies.
        """
        proxies = strided_means(windowed, windows.window, self.shape.proxy_strides)
        tokens, proxies = (
            part.reshape(-1, windows.count * part.shape[1], part.shape[2]) for part in (windowed, proxies)
        )
        normed = self.norm(proxies)
        proxies = self.norm(proxies + self.proxy_attn1(normed, normed))
        read = self.pvisual_attn2(self.norm(tokens), proxies)
        return windowed + self.linear_1_visual(read).view_as(windowed)

    def _windowed(self, windowed: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """Step 3: attention inside each window."""
        x = self.norm(windowed) * (1 + scale) + shift
        return windowed + gate * self.attn1(x, x)

    def _shifted(self, windowed: Tensor, context: BlockContext) -> Tensor:
        """Step 4: attention in windows shifted by half, so that neighbours in different windows share a window."""
        windows = context.windows
        parts = self.proxy_scale_shift_table.to(windowed.dtype) + context.modulation[:, :3]
        shift, scale, gate = tiled(parts, windows.count)
        x = windows.shifted(self.norm(windowed)) * (1 + scale) + shift
        x = windows.unshifted(self.attn3(x, x, context.shift_mask))
        return windowed + self.linear_2(gate * x)

    def _text(self, windowed: Tensor, context: BlockContext) -> Tensor:
        """Step 5: the tokens attend to the text. There is no norm before this step."""
        tokens = windowed.reshape(len(context.text), -1, windowed.shape[-1])
        return windowed + self.attn2(tokens, context.text, context.text_mask).view_as(windowed)

    def forward(self, windowed: Tensor, context: BlockContext) -> Tensor:
        parts = self.scale_shift_table.to(windowed.dtype) + context.modulation
        shift, scale, gate, shift_ff, scale_ff, gate_ff = tiled(parts, context.windows.count)
        windowed = self._windowed(self._global(windowed, context.windows), shift, scale, gate)
        if self.shape.shift_window:
            windowed = self._shifted(windowed, context)
        windowed = self._text(windowed, context)
        return windowed + gate_ff * self.ff(self.norm(windowed) * (1 + scale_ff) + shift_ff)
