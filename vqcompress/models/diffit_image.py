"""DiffiT in image space (arXiv 2312.02139, section 3.2): a U-shaped network with time-dependent window attention.

No code or weights were published. The paper specifies the blocks (its equations 1 to 8), the tokenizer, strided
convolutions to go down, transposed convolutions to go up, four levels at 64 px and three at 32 px. It does not specify
how skips are merged (here: concatenated, then a 1x1 convolution) or the window size (here: 8, or the whole grid if
that is smaller).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import fold, scaled_dot_product_attention, silu

from vqcompress.errors import ArchitectureError
from vqcompress.models.attention import join_heads, split_heads
from vqcompress.models.embeddings import LabelEmbedder, TimestepEmbedder
from vqcompress.models.feed_forward import Mlp
from vqcompress.models.modulation import plain_norm
from vqcompress.models.network import Network
from vqcompress.models.relative_positions import relative_bias, table_rows


def to_windows(x: Tensor, window: int) -> Tensor:
    """[n, h, w, c] -> [n·(h/window)·(w/window), window², c]."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `to_windows` for a grid of ``rows`` x ``columns``."""
    window = math.isqrt(x.shape[1])
    x = x.unflatten(1, (window, window)).unflatten(0, (-1, rows // window, columns // window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class WindowTimeAttention(nn.Module):
    """Self-attention in square windows. Queries, keys and values also depend on time (equations 3 to 6)."""

    def __init__(self, width: int, time_width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.qkv_temb = nn.Linear(time_width, 3 * width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(window), heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x`` [n, h, w, width], ``time`` [n, time_width] -> [n, h, w, width]."""
        qkv = self.qkv(x) + self.qkv_temb(time)[:, None, None]
        query, key, value = split_heads(to_windows(qkv, self.window), self.heads)
        bias = relative_bias(self.relative_position_bias_table, self.window).to(query.dtype).unsqueeze(0)
        mixed = join_heads(scaled_dot_product_attention(query, key, value, attn_mask=bias))
        return self.proj(from_windows(mixed, *x.shape[1:3]))


class TransposedConvolution(nn.Module):
    """Transposed convolution with kernel 4, stride 2, padding 1.

    Each pixel is multiplied by a matrix, and overlapping patches are added. The matrix is a Linear [out·16, in], which
    can be packed like any other. ``nn.ConvTranspose2d`` stores it input-first.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.patches = nn.Linear(width, 16 * out, bias=False)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> [n, out, 2h, 2w]."""
        rows, columns = x.shape[2:]
        patches = self.patches(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return fold(patches, (2 * rows, 2 * columns), 4, padding=1, stride=2) + self.bias[:, None, None]


class DiffiTResBlock(nn.Module):
    """h = Conv3x3(Swish(GN(x))); out = transformer(h, time) + x (equations 7 and 8, 1 and 2)."""

    def __init__(self, width: int, time_width: int, heads: int, window: int, mlp_ratio: float):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(32, width), width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = plain_norm(width)
        self.attn = WindowTimeAttention(width, time_width, heads, window)
        self.norm2 = plain_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv(silu(self.norm(x))).permute(0, 2, 3, 1)
        h = h + self.attn(self.norm1(h), time)
        h = h + self.mlp(self.norm2(h))
        return h.permute(0, 3, 1, 2) + x


class DiffiTStage(nn.ModuleList):
    """The blocks of one level, applied in order."""

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        for block in self:
            h = block(h, time)
        return h


class DiffiTImage(Network):
    """Image-space DiffiT. ``widths`` and ``blocks`` have one entry per level; each level halves the size.

    ``forward(x [n, in_channels, s, s], t [n], y [n] labels or None)`` returns [n, in_channels, s, s]. The models were
    trained with EDM preconditioning (arXiv 2206.00364), where t is ln(sigma)/4 and x is the scaled input.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        widths: Sequence[int] = (128, 256, 256, 256),
        blocks: Sequence[int] = (4, 4, 4, 4),
        head_dim: int = 32,
        window: int = 8,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        class_dropout_prob: float = 0.1,
    ):
        super().__init__()
        self._check_sizes()
        time_width = 4 * widths[0]
        self.t_embedder = TimestepEmbedder(time_width)
        self.y_embedder = None
        if num_classes is not None:
            self.y_embedder = LabelEmbedder(num_classes, time_width, class_dropout_prob)
        levels = range(len(widths))
        self.tokenizer = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(self._stage(level) for level in levels)
        self.down = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, 2, padding=1) for i in levels[:-1])
        self.up = nn.ModuleList(TransposedConvolution(widths[i + 1], widths[i]) for i in levels[:-1])
        self.merge = nn.ModuleList(nn.Conv2d(2 * widths[i], widths[i], 1) for i in levels[:-1])
        self.decoder = nn.ModuleList(self._stage(level) for level in levels[:-1])
        self.norm_out = nn.GroupNorm(math.gcd(32, widths[0]), widths[0])
        self.head = nn.Conv2d(widths[0], in_channels, 3, padding=1)

    def _check_sizes(self) -> None:
        args = self.config
        if len(args["widths"]) != len(args["blocks"]):
            raise ArchitectureError(f"{len(args['widths'])} widths need as many block counts, not {args['blocks']}.")
        for level, width in enumerate(args["widths"]):
            size, rest = divmod(args["image_size"], 2**level)
            if rest or size % min(args["window"], size) or width % args["head_dim"]:
                raise ArchitectureError(
                    f"Level {level} of DiffiT has {args['image_size']}/{2**level} pixels a side and width {width}: "
                    f"windows of {args['window']} or heads of {args['head_dim']} do not divide them."
                )

    def _stage(self, level: int) -> DiffiTStage:
        args = self.config
        width, window = args["widths"][level], min(args["window"], args["image_size"] // 2**level)
        time_width, heads = 4 * args["widths"][0], width // args["head_dim"]
        return DiffiTStage(
            DiffiTResBlock(width, time_width, heads, window, args["mlp_ratio"]) for _ in range(args["blocks"][level])
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        time, skips = self._condition(x, t, y), []
        h = self.tokenizer(x)
        for level, stage in enumerate(self.encoder):
            h = stage(h, time)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.decoder))):
            h = self.merge[level](torch.cat([self.up[level](h), skips[level]], dim=1))
            h = self.decoder[level](h, time)
        return self.head(silu(self.norm_out(h)))

    def _condition(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        time = self.t_embedder(t, x.dtype)
        if self.y_embedder is None:
            return time
        if y is None:
            raise ArchitectureError("This DiffiT is class-conditional: pass labels y, the null label for no class.")
        return time + self.y_embedder(y)
