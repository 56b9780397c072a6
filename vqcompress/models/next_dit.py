"""Next-DiT (Zhuo et al. 2024, arXiv 2406.18583): Lumina-Next for text, Next-DiT for labels.

It is Flag-DiT with rotary positions on the grid instead of the row, RMSNorm before and after each sub-layer, and gates
limited to (-1, 1) by tanh. Time is in [0, 1], with noise at 0. The label network is not the text network without text:
its norms before the sub-layers have no weights, and its final layer is Flag-DiT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vqcompress.errors import ArchitectureError
from vqcompress.models.flag_dit import FlagBlock
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
from vqcompress.models.rotary import RotaryScaling, Table, grid_table, time_aware_scaling
from vqcompress.models.token_rows import SameImages, TokenRows


class _SandwichBlock(nn.Module):
    """Attention, then feed-forward, each with a scale before it, and a norm and a tanh gate after it."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        heads, kv_heads, text = shape.n_heads, shape.n_kv_heads, shape.cap_feat_dim
        self.attention = FlagAttention(shape.dim, heads, kv_heads, shape.qk_norm, text)
        self.feed_forward = FlagFeedForward(shape.dim, shape.hidden)
        self.adaLN_modulation = flag_modulation(shape.dim, 4)


class NextBlock(_SandwichBlock):
    """The text network's block: the norms before and after a sub-layer have weights."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__(shape)
        self.attention_norm1, self.attention_norm2 = (nn.RMSNorm(shape.dim, shape.norm_eps) for _ in range(2))
        self.ffn_norm1, self.ffn_norm2 = (nn.RMSNorm(shape.dim, shape.norm_eps) for _ in range(2))
        if (text := shape.cap_feat_dim) is not None:
            self.attention_y_norm = nn.RMSNorm(text, shape.norm_eps)

    def forward(self, x: Tensor, condition: Tensor, places: Places, text: Text | None) -> Tensor:
        parts = self.adaLN_modulation(condition).unsqueeze(1).chunk(4, dim=-1)
        scale_attn, gate_attn, scale_ffn, gate_ffn = parts
        text = text and Text(self.attention_y_norm(text.features), text.mask)
        attended = self.attention(self.attention_norm1(x) * (1 + scale_attn), places, text)
        x = x + gate_attn.tanh() * self.attention_norm2(attended)
        fed = self.feed_forward(self.ffn_norm1(x) * (1 + scale_ffn))
        return x + gate_ffn.tanh() * self.ffn_norm2(fed)


class NextLabelBlock(_SandwichBlock):
    """The label network's block: only the norms after a sub-layer have weights."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__(shape)
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(shape.dim, shape.norm_eps) for _ in range(2))
        self.bare_norm = nn.RMSNorm(shape.dim, shape.norm_eps, elementwise_affine=False)

    def forward(self, x: Tensor, condition: Tensor, places: Places, text: None) -> Tensor:
        parts = self.adaLN_modulation(condition).unsqueeze(1).chunk(4, dim=-1)
        scale_attn, gate_attn, scale_ffn, gate_ffn = parts
        attended = self.attention(self.bare_norm(x) * (1 + scale_attn), places, None)
        x = x + gate_attn.tanh() * self.attention_norm(attended)
        fed = self.feed_forward(self.bare_norm(x) * (1 + scale_ffn))
        return x + gate_ffn.tanh() * self.ffn_norm(fed)


class _NextNetwork(FlagTrunk):
    def _table(self, rows: TokenRows, scaling: RotaryScaling) -> Table:
        width, device = self.shape.head_width, rows.tokens.device
        if rows.present is None and len(set(rows.grids)) == 1:
            return grid_table(*rows.grids[0], width, scaling, device)
        tables = [grid_table(*grid, width, scaling, device) for grid in rows.grids]
        cos, sin = (pad_sequence(entries, batch_first=True) for entries in map(list, zip(*tables, strict=True)))
        return cos, sin


class NextDiT(_NextNetwork):
    """Lumina-Next's text-to-image Next-DiT, with the argument and parameter names of the official ``NextDiT``."""

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
        use_flash_attn: bool = True,
        scale_factor: float = 1.0,
    ) -> None:
        """``use_flash_attn`` selects a kernel in the official code. The result is the same, so it is ignored here."""
        super().__init__()
        trunk = (patch_size, in_channels, dim, n_layers, n_heads, n_kv_heads, multiple_of, ffn_dim_multiplier)
        self._build(TrunkShape(*trunk, norm_eps, learn_sigma, qk_norm, cap_feat_dim), NextBlock, final_parts=1)
        self._build_token("pad_token")
        self._build_caption(cap_feat_dim)
        self.scaling = RotaryScaling(linear=scale_factor)

    def forward(
        self,
        x: SameImages,
        t: Tensor,
        cap_feats: Tensor,
        cap_mask: Tensor,
        scale_factor: float | None = None,
        scale_watershed: float = 1.0,
        base_seqlen: int | None = None,
    ) -> SameImages:
        """Return the velocity of the flow at time ``t``.

        ``x``: ``[batch, in_channels, h, w]`` or a list of ``[in_channels, h, w]``; ``t``: ``[batch]`` in [0, 1], noise
        at 0; ``cap_feats``: ``[batch, length, cap_feat_dim]``; ``cap_mask``: ``[batch, length]``, 1 for text. The
        result is a tensor or a list, like ``x``. The other arguments adapt to resolutions above the trained one:
        rotary tables are rebuilt at each call from ``t[0]`` (see time_aware_scaling), and attention is kept as sharp
        as at ``base_seqlen`` tokens.
        """
        scaling = (
            self.scaling if scale_factor is None else time_aware_scaling(scale_factor, scale_watershed, float(t[0]))
        )
        return self._read(x, t, cap_feats, cap_mask, scaling, base_seqlen)

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        cap_feats: Tensor,
        cap_mask: Tensor,
        cfg_scale: float,
        scale_factor: float | None = None,
        scale_watershed: float = 1.0,
        base_seqlen: int | None = None,
        proportional_attn: bool = False,
    ) -> Tensor:
        """Like forward, for ``[conditional, unconditional]`` halves of one latent, with guidance on three channels.

        ``base_seqlen`` is used only with ``proportional_attn``.
        """
        adapted = (scale_factor, scale_watershed, base_seqlen if proportional_attn else None)
        return guided(lambda both: self(both, t, cap_feats, cap_mask, *adapted), x, cfg_scale)


class NextDiTLabels(LabelledTrunk, _NextNetwork):
    """Class-conditional Next-DiT, with argument and parameter names of the official ``DiT_Llama`` (Next-DiT-ImageNet).

    Label ``num_classes`` is the null label. ``input_size`` is the side of the trained latent, at which pipelines draw
    by default; the network takes other sizes too.
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
        has_pad_token: bool = False,
        sandwich_norm: bool = True,
    ) -> None:
        """Two arguments are our additions, for weights that differ from the published ones. ``has_pad_token``: they
        have a ``pad_token``, so that a batch can mix sizes. ``sandwich_norm`` False: their blocks are Flag-DiT's, which
        shift, scale and gate.
        """
        super().__init__()
        trunk = (patch_size, in_channels, dim, n_layers, n_heads, n_kv_heads, multiple_of, ffn_dim_multiplier)
        shape = TrunkShape(*trunk, norm_eps, learn_sigma, qk_norm)
        self._build(shape, NextLabelBlock if sandwich_norm else FlagBlock, final_parts=2)
        self._build_token("pad_token", has_pad_token)
        self._build_labels(num_classes, class_dropout_prob)

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        cfg_scale: float,
        rope_scaling_factor: float | None = None,
        ntk_factor: float | None = None,
    ) -> Tensor:
        """Like forward, for ``[conditional, unconditional]`` halves of one latent, with guidance on three channels.

        ``rope_scaling_factor`` and ``ntk_factor``, both or neither, adapt to resolutions above the trained one (see
        RotaryScaling), for this call only.
        """
        if (rope_scaling_factor is None) != (ntk_factor is None):
            raise ArchitectureError("give both of rope_scaling_factor and ntk_factor, or neither; 1.0 changes nothing")
        if rope_scaling_factor is None or ntk_factor is None:
            return super().forward_with_cfg(x, t, y, cfg_scale)  # through the module, whose hooks record its calls
        scaling = RotaryScaling(rope_scaling_factor, ntk_factor)
        return guided(lambda both: self._labelled(both, t, y, scaling), x, cfg_scale)


def next_dit_network(**arguments: Any) -> NextDiT | NextDiTLabels:
    """Build NextDiTLabels if ``num_classes`` is among the arguments, otherwise NextDiT."""
    return NextDiTLabels(**arguments) if "num_classes" in arguments else NextDiT(**arguments)


def next_dit_from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> NextDiT | NextDiTLabels:
    """NextDiT with official weights, or NextDiTLabels if the weights have a label table."""
    if "y_embedder.embedding_table.weight" not in state_dict:
        return load_strictly(construct(next_dit_network, config), state_dict)
    found = {"has_pad_token": "pad_token" in state_dict, "sandwich_norm": _modulation_parts(state_dict) != 6}
    return load_strictly(construct(NextDiTLabels, found | dict(config)), state_dict)


def _modulation_parts(state_dict: Mapping[str, Tensor]) -> int:
    """How many vectors modulate a block: 4 with norms on both sides of a sub-layer, 6 in Flag-DiT's blocks."""
    modulation, query = (state_dict.get(f"layers.0.{name}.weight") for name in ("adaLN_modulation.1", "attention.wq"))
    return 0 if modulation is None or query is None else len(modulation) // len(query)
