"""Flag-DiT (Gao et al. 2024, arXiv 2405.05945): Lumina-T2I for text, Flag-DiT for labels, and Large-DiT.

An image is one row of tokens with one-dimensional rotary positions. In the text network, a learned ``eol_token`` ends
each line of the image and a ``pad_token`` fills shorter rows, so a batch can mix image sizes. The label networks have
neither token. Time is in [0, 1] for Flag-DiT and in [0, 1000) for Large-DiT, which is the same network trained as a
DDPM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vqcompress.models.flag_layers import (
    FlagAttention,
    FlagFeedForward,
    Places,
    Text,
    flag_modulation,
)
from vqcompress.models.flag_trunk import FlagTrunk, LabelledTrunk, TrunkShape
from vqcompress.models.guidance import guided
from vqcompress.models.official_weights import construct, load_strictly
from vqcompress.models.rotary import RotaryScaling, Table, row_table
from vqcompress.models.token_rows import SameImages, TokenRows


class FlagBlock(nn.Module):
    """Attention, then feed-forward, each shifted, scaled and gated by the condition."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        heads, kv_heads, text = shape.n_heads, shape.n_kv_heads, shape.cap_feat_dim
        self.attention = FlagAttention(shape.dim, heads, kv_heads, shape.qk_norm, text)
        self.feed_forward = FlagFeedForward(shape.dim, shape.hidden)
        self.attention_norm = nn.RMSNorm(shape.dim, shape.norm_eps)
        self.ffn_norm = nn.RMSNorm(shape.dim, shape.norm_eps)
        self.adaLN_modulation = flag_modulation(shape.dim, 6)
        if text is not None:
            self.attention_y_norm = nn.RMSNorm(text, shape.norm_eps)

    def forward(self, x: Tensor, condition: Tensor, places: Places, text: Text | None) -> Tensor:
        parts = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = parts
        text = text and Text(self.attention_y_norm(text.features), text.mask)
        x = x + gate_attn * self.attention(self.attention_norm(x) * (1 + scale_attn) + shift_attn, places, text)
        return x + gate_ffn * self.feed_forward(self.ffn_norm(x) * (1 + scale_ffn) + shift_ffn)


class _FlagNetwork(FlagTrunk):
    def _build_flag(self, shape: TrunkShape) -> None:
        self._build(shape, FlagBlock, final_parts=2)
        for name in ("eol_token", "pad_token"):
            self._build_token(name, wanted=shape.cap_feat_dim is not None)

    def _joined(self, lines: Tensor) -> Tensor:
        """Append the end-of-line token, if there is one, to each line and flatten the lines to one row."""
        if self.eol_token is not None:
            lines = torch.cat([lines, self.eol_token.to(lines.dtype).expand(len(lines), 1, -1)], dim=1)
        return lines.flatten(0, 1)

    def _real(self, row: Tensor, height: int, width: int) -> Tensor:
        line = width + (self.eol_token is not None)
        return row[: height * line].unflatten(0, (height, line))[:, :width].flatten(0, 1)

    def _table(self, rows: TokenRows, scaling: RotaryScaling) -> Table:
        return row_table(rows.tokens.shape[1], self.shape.head_width, scaling, rows.tokens.device)


class FlagDiT(_FlagNetwork):
    """Lumina-T2I's text-to-image Flag-DiT, with the argument and parameter names of the official ``DiT_Llama``."""

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 4,
        dim: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        learn_sigma: bool = True,
        qk_norm: bool = False,
        cap_feat_dim: int = 5120,
        rope_scaling_factor: float = 1.0,
        ntk_factor: float = 1.0,
    ) -> None:
        super().__init__()
        trunk = (patch_size, in_channels, dim, n_layers, n_heads, n_kv_heads, multiple_of, ffn_dim_multiplier)
        self._build_flag(TrunkShape(*trunk, norm_eps, learn_sigma, qk_norm, cap_feat_dim))
        self._build_caption(cap_feat_dim)
        self.scaling = RotaryScaling(rope_scaling_factor, ntk_factor)

    def forward(
        self,
        x: SameImages,
        t: Tensor,
        cap_feats: Tensor,
        cap_mask: Tensor,
        rope_scaling_factor: float | None = None,
        ntk_factor: float | None = None,
        base_seqlen: int | None = None,
    ) -> SameImages:
        """Return the velocity of the flow at time ``t``.

        ``x``: ``[batch, in_channels, h, w]`` or a list of ``[in_channels, h, w]``; ``t``: ``[batch]`` in [0, 1], noise
        at 0; ``cap_feats``: ``[batch, length, cap_feat_dim]``; ``cap_mask``: ``[batch, length]``, 1 for text. The
        result is a tensor or a list, like ``x``. The other arguments adapt to resolutions above the trained one: see
        RotaryScaling, and proportional_scale for ``base_seqlen``, the trained number of tokens.
        """
        scaling = RotaryScaling(rope_scaling_factor or self.scaling.linear, ntk_factor or self.scaling.ntk)
        return self._read(x, t, cap_feats, cap_mask, scaling, base_seqlen)

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        cap_feats: Tensor,
        cap_mask: Tensor,
        cfg_scale: float,
        rope_scaling_factor: float | None = None,
        ntk_factor: float | None = None,
        base_seqlen: int | None = None,
        proportional_attn: bool = False,
    ) -> Tensor:
        """Like forward, for ``[conditional, unconditional]`` halves of one latent, with guidance on three channels.

        ``base_seqlen`` is used only with ``proportional_attn``.
        """
        adapted = (rope_scaling_factor, ntk_factor, base_seqlen if proportional_attn else None)
        return guided(lambda both: self(both, t, cap_feats, cap_mask, *adapted), x, cfg_scale)


class _FlagLabels(LabelledTrunk, _FlagNetwork):
    """Base class of FlagDiTLabels and LargeDiT, which differ only in the number of channels that they return.

    Argument and parameter names and defaults are those of the official ``DiT_Llama`` for ImageNet. ``input_size`` is
    the side of the trained latent, at which pipelines draw by default; the network takes other sizes too.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        dim: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        trunk = (patch_size, in_channels, dim, n_layers, n_heads, n_kv_heads, multiple_of, ffn_dim_multiplier)
        self._build_flag(TrunkShape(*trunk, norm_eps, learn_sigma, qk_norm))
        self._build_labels(num_classes, class_dropout_prob)


class FlagDiTLabels(_FlagLabels):
    """Class-conditional Flag-DiT (ImageNet), a flow like FlagDiT. Label ``num_classes`` is the null label."""


class LargeDiT(_FlagLabels):
    """Flag-DiT's network trained as a DDPM, so ``t`` is in [0, 1000) and the variance is returned too."""

    @property
    def _channels(self) -> int:
        return self.shape.out_channels


def flag_dit_network(**arguments: Any) -> FlagDiT | FlagDiTLabels:
    """Build FlagDiTLabels if ``num_classes`` is among the arguments, otherwise FlagDiT."""
    return FlagDiTLabels(**arguments) if "num_classes" in arguments else FlagDiT(**arguments)


def flag_dit_from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> FlagDiT | FlagDiTLabels:
    """FlagDiT with official weights, or FlagDiTLabels if the weights have a label table."""
    if "y_embedder.embedding_table.weight" in state_dict:
        return load_strictly(construct(FlagDiTLabels, config), state_dict)
    return load_strictly(construct(flag_dit_network, config), state_dict)


def large_dit_from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> LargeDiT:
    """LargeDiT with official weights."""
    return load_strictly(construct(LargeDiT, config), state_dict)
