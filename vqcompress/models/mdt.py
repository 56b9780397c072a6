"""Masked diffusion transformers, MDT v1 and v2 (arXiv 2303.14389), for inference, which uses no masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vqcompress.errors import UnsupportedError
from vqcompress.models.attention import join_heads, split_heads
from vqcompress.models.embeddings import LabelEmbedder, PatchEmbedder, TimestepEmbedder, sincos_grid, unpatchify
from vqcompress.models.feed_forward import Mlp
from vqcompress.models.guidance import guided, power_cosine
from vqcompress.models.modulation import FinalLayer, modulate, modulation, plain_norm
from vqcompress.models.network import Network
from vqcompress.models.official_weights import construct, load_strictly
from vqcompress.models.relative_positions import relative_bias, relative_position_index, table_rows

Version = TypeVar("Version", bound="MDT")


class RelativePositionBias(nn.Module):
    """A bias for each head and relative position. Three unused rows are for a class token that MDT does not have."""

    def __init__(self, window: int, heads: int):
        super().__init__()
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(window) + 3, heads))

    def forward(self) -> Tensor:
        return relative_bias(self.relative_position_bias_table, self.window)


class BiasedSelfAttention(nn.Module):
    """Self-attention over the whole grid with a relative position bias."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.rel_pos_bias = RelativePositionBias(window, heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(self.qkv(x), self.heads)
        bias = self.rel_pos_bias().to(query.dtype).unsqueeze(0)
        return self.proj(join_heads(scaled_dot_product_attention(query, key, value, attn_mask=bias)))


class MDTBlock(nn.Module):
    """DiT's block with biased attention. With ``skips``, an earlier block's tokens are merged in first."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, window: int, skips: bool = False):
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if skips else None
        self.adaLN_modulation = modulation(width, 6)
        self.norm1 = plain_norm(width)
        self.attn = BiasedSelfAttention(width, heads, window)
        self.norm2 = plain_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, condition: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift, scale))
        return x + mlp_gate.unsqueeze(1) * self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale))


class MDT(Network):
    """Base class of both versions: embeddings, final layer, forward. A version adds its blocks and ``_blocks``."""

    # Layers are registered in the order in which they run, because they are compressed in that order.
    def _build_start(self) -> None:
        args = self.config
        grid = args["input_size"] // args["patch_size"]
        self.x_embedder = PatchEmbedder(args["patch_size"], args["in_channels"], args["hidden_size"])
        self.t_embedder = TimestepEmbedder(args["hidden_size"])
        self.y_embedder = LabelEmbedder(args["num_classes"], args["hidden_size"], args["class_dropout_prob"])
        self.pos_embed = nn.Parameter(sincos_grid(args["hidden_size"], grid).unsqueeze(0))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, grid**2, args["hidden_size"]))

    def _build_end(self) -> None:
        args = self.config
        channels = args["in_channels"] * (2 if args["learn_sigma"] else 1)
        self.final_layer = FinalLayer(args["hidden_size"], args["patch_size"], channels)
        # Only training uses this token and the side blocks, to fill masked places. Strict loading needs both.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, args["hidden_size"]), requires_grad=False)
        self.sideblocks = self._stack(1)

    def _stack(self, count: int, skips: bool = False) -> nn.ModuleList:
        args = self.config
        window = args["input_size"] // args["patch_size"]
        return nn.ModuleList(
            MDTBlock(args["hidden_size"], args["num_heads"], args["mlp_ratio"], window, skips) for _ in range(count)
        )

    def _blocks(self, tokens: Tensor, condition: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, y: Tensor, enable_mask: bool = False) -> Tensor:
        """``x`` [n, in_channels, s, s], ``t`` [n] in [0, 1000), ``y`` [n] labels -> [n, C, s, s].

        C is twice ``in_channels`` with ``learn_sigma``. ``enable_mask`` is for training and raises UnsupportedError.
        """
        if enable_mask:
            raise UnsupportedError("MDT runs here without masks (inference); leave enable_mask=False.")
        condition = self.t_embedder(t, x.dtype) + self.y_embedder(y)
        tokens = self._blocks(self.x_embedder(x) + self.pos_embed, condition)
        return unpatchify(self.final_layer(tokens, condition), self.config["patch_size"])

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        cfg_scale: float | None = None,
        diffusion_steps: int = 1000,
        scale_pow: float = 4.0,
    ) -> Tensor:
        """Guided output for a batch of [conditional, null] halves; guidance grows as t falls (power-cosine)."""
        if cfg_scale is None:
            return self(x, t, y)
        return guided(lambda both: self(both, t, y), x, power_cosine(t, cfg_scale, diffusion_steps, scale_pow))


class MDTv1(MDT):
    """``depth`` blocks in sequence. Learned positions are added before the last ``decode_layer`` blocks."""

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        mask_ratio: float | None = None,
        decode_layer: int = 2,
    ):
        super().__init__()
        self._build_start()
        self.blocks = self._stack(depth)
        self._build_end()

    def _blocks(self, tokens: Tensor, condition: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - self.config["decode_layer"]:
                tokens = tokens + self.decoder_pos_embed
            tokens = block(tokens, condition)
        return tokens


class MDTv2(MDT):
    """A U of blocks (in, then out with long skips), then ``decode_layer`` blocks whose skip is the patch embedding.

    Each side of the U has (depth - decode_layer) // 2 blocks. If the difference is odd, one block fewer is built.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        mask_ratio: float | None = None,
        decode_layer: int = 4,
    ):
        super().__init__()
        self._build_start()
        self.en_inblocks = self._stack((depth - decode_layer) // 2)
        self.en_outblocks = self._stack((depth - decode_layer) // 2, skips=True)
        self.de_blocks = self._stack(decode_layer, skips=True)
        self._build_end()

    def _blocks(self, tokens: Tensor, condition: Tensor) -> Tensor:
        embedded, skips = tokens, []
        for block in self.en_inblocks:
            tokens = block(tokens, condition)
            skips.append(tokens)
        for block in self.en_outblocks:
            tokens = block(tokens, condition, skip=skips.pop())
        tokens = tokens + self.decoder_pos_embed
        for block in self.de_blocks:
            tokens = block(tokens, condition, skip=embedded)
        return tokens


def _loaded(model: Version, state_dict: Mapping[str, Tensor]) -> Version:
    index = relative_position_index(model.config["input_size"] // model.config["patch_size"])
    places = (n for n, part in model.named_modules() if isinstance(part, RelativePositionBias))
    return load_strictly(model, state_dict, rebuilt={f"{place}.relative_position_index": index for place in places})


def mdt_v1_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> MDTv1:
    """MDT v1 with the weights of a sail-sg/MDT checkpoint of branch mdtv1."""
    return _loaded(construct(MDTv1, config), state_dict)


def mdt_v2_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> MDTv2:
    """MDT v2 with the weights of a sail-sg/MDT checkpoint."""
    return _loaded(construct(MDTv2, config), state_dict)
