"""Base of Flag-DiT, Large-DiT and Next-DiT: patch embedding, conditioned blocks, final layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models.embeddings import LabelEmbedder, TimestepEmbedder
from vqcompress.models.flag_layers import (
    FlagFinalLayer,
    Places,
    Text,
    condition_width,
    hidden_width,
    proportional_scale,
)
from vqcompress.models.guidance import guided
from vqcompress.models.network import Network
from vqcompress.models.rotary import RotaryScaling, Table
from vqcompress.models.token_rows import Images, SameImages, TokenRows, batched, image_of, patches


@dataclass(frozen=True)
class TrunkShape:
    """Constructor arguments that every variant has, under their official names."""

    patch_size: int
    in_channels: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    multiple_of: int
    ffn_dim_multiplier: float | None
    norm_eps: float
    learn_sigma: bool
    qk_norm: bool
    cap_feat_dim: int | None = None

    def __post_init__(self) -> None:
        kv_heads = self.n_kv_heads or self.n_heads
        if self.dim % self.n_heads or self.n_heads % kv_heads or (self.dim // self.n_heads) % 4:
            raise ArchitectureError(
                f"dim={self.dim}, n_heads={self.n_heads}, n_kv_heads={kv_heads} do not fit together: n_heads must "
                "divide dim into heads of a multiple of 4 channels (rotary pairs), and n_kv_heads must divide n_heads."
            )

    @property
    def head_width(self) -> int:
        return self.dim // self.n_heads

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def hidden(self) -> int:
        return hidden_width(self.dim, self.multiple_of, self.ffn_dim_multiplier)


class FlagTrunk(Network):
    """Base class of the networks. A subclass defines its blocks and how images become token rows."""

    def _build(self, shape: TrunkShape, block: Callable[[TrunkShape], nn.Module], final_parts: int) -> None:
        self.shape = shape
        self.x_embedder = nn.Linear(shape.patch_size**2 * shape.in_channels, shape.dim)
        self.t_embedder = TimestepEmbedder(condition_width(shape.dim))
        self.layers = nn.ModuleList(block(shape) for _ in range(shape.n_layers))
        outputs = shape.patch_size**2 * shape.out_channels
        self.final_layer = FlagFinalLayer(shape.dim, outputs, final_parts)

    def _build_caption(self, width: int) -> None:
        self.cap_embedder = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, condition_width(self.shape.dim)))

    def _build_labels(self, classes: int, dropout: float) -> None:
        self.y_embedder = LabelEmbedder(classes, condition_width(self.shape.dim), dropout)

    def _build_token(self, name: str, wanted: bool = True) -> None:
        token = torch.empty(self.shape.dim).normal_(std=0.02)
        self.register_parameter(name, nn.Parameter(token) if wanted else None)

    def _patches(self, x: Images) -> list[Tensor]:
        """Embedded patches of each image, ``[rows, columns, dim]``."""
        return [self.x_embedder(patches(image, self.shape.patch_size)) for image in x]

    def _caption(self, features: Tensor, mask: Tensor) -> Tensor:
        """Mean of the caption's real tokens, embedded: ``[batch, condition width]``."""
        weight = mask.to(features.dtype).unsqueeze(-1)
        return self.cap_embedder((features * weight).sum(1) / weight.sum(1).clamp(min=1))

    def _rows(self, x: Images) -> TokenRows:
        """Put the patches of each image into one row and pad shorter rows."""
        cells = self._patches(x)
        grids = [(len(lines), lines.shape[1]) for lines in cells]
        return batched([self._joined(lines) for lines in cells], grids, self.pad_token)

    def _joined(self, lines: Tensor) -> Tensor:
        """Flatten ``[rows, columns, dim]`` to one row of tokens."""
        return lines.flatten(0, 1)

    def _real(self, row: Tensor, height: int, width: int) -> Tensor:
        """Output tokens of one image ``[rows·columns, …]``, without the tokens that `_joined` and padding added."""
        return row[: height * width]

    def _table(self, rows: TokenRows, scaling: RotaryScaling) -> Table:
        """Rotary table of all tokens."""
        raise NotImplementedError

    def _places(self, rows: TokenRows, scaling: RotaryScaling, base_seqlen: int | None) -> Places:
        length, width = rows.tokens.shape[1], self.shape.head_width
        scale = None if base_seqlen is None else proportional_scale(length, base_seqlen, width)
        return Places(self._table(rows, scaling), rows.present, scale)

    def _read(
        self,
        x: SameImages,
        t: Tensor,
        features: Tensor,
        mask: Tensor,
        scaling: RotaryScaling,
        base_seqlen: int | None,
    ) -> SameImages:
        """Velocity at time ``t`` for a caption: ``features`` ``[batch, length, width]``, ``mask`` 1 for text."""
        rows = self._rows(x)
        condition = self.t_embedder(t, rows.tokens.dtype) + self._caption(features, mask)
        places = self._places(rows, scaling, base_seqlen)
        tokens = self._run(rows, condition, places, Text(features, mask.bool()))
        return self._images(tokens, rows, x, self.shape.in_channels)

    def _run(self, rows: TokenRows, condition: Tensor, places: Places, text: Text | None) -> Tensor:
        """Run all blocks and the final layer. Returns ``[batch, tokens, patch·patch·out_channels]``."""
        x = rows.tokens
        for layer in self.layers:
            x = layer(x, condition, places, text)
        return self.final_layer(x, condition)

    def _images(self, tokens: Tensor, rows: TokenRows, like: SameImages, channels: int) -> SameImages:
        """Return the first ``channels`` output channels of each image, stacked if the input ``like`` was a tensor."""
        images = [
            image_of(self._real(row, *grid), grid, self.shape.patch_size)[:channels]
            for row, grid in zip(tokens, rows.grids, strict=True)
        ]
        return cast(SameImages, torch.stack(images) if isinstance(like, Tensor) else images)


class LabelledTrunk(FlagTrunk):
    """Base class of the class-conditional networks."""

    @property
    def _channels(self) -> int:
        """Number of output channels that are returned: those of the latent, without the variance."""
        return self.shape.in_channels

    def forward(self, x: SameImages, t: Tensor, y: Tensor) -> SameImages:
        """Run the network. The result is a tensor or a list, like ``x``.

        ``x``: ``[batch, in_channels, h, w]`` or a list of ``[in_channels, h, w]``; ``t``: ``[batch]``; labels ``y``:
        ``[batch]``.
        """
        return self._labelled(x, t, y, RotaryScaling())

    def _labelled(self, x: SameImages, t: Tensor, y: Tensor, scaling: RotaryScaling) -> SameImages:
        rows = self._rows(x)
        condition = self.t_embedder(t, rows.tokens.dtype) + self.y_embedder(y)
        tokens = self._run(rows, condition, self._places(rows, scaling, None), None)
        return self._images(tokens, rows, x, self._channels)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """Like forward, for ``[conditional, unconditional]`` halves of one latent, with guidance on three channels."""
        return guided(lambda both: self(both, t, y), x, cfg_scale)
