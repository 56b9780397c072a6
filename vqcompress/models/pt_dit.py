"""PT-DiT / Qihoo-T2X (Wang et al. 2024, arXiv 2409.04005): proxy-tokenized transformer for images, video, views.

Time is a float in [0, 1000], with noise at 1000. All samples of a batch must have the same timestep: see
pt_dit_block.tiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.normalization import AdaLayerNormSingle
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models.network import Network
from vqcompress.models.official_weights import construct, load_strictly
from vqcompress.models.pt_dit_block import BlockContext, BlockShape, PTDiTBlock
from vqcompress.models.windows import Box, Windows

# Added to the scores of absent text tokens, as in training. It is finite, so that for an empty caption the attention
# is spread evenly over them.
ABSENT = -10000.0


def _waves(positions: Tensor, width: int) -> Tensor:
    """``[n]`` -> float64 ``[n, width]``: sines, then cosines, of frequencies ``10000^(-i / (width / 2))``."""
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device=positions.device) / (width / 2))
    angles = torch.outer(positions.double(), rates)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def video_positions(size: Box, width: int, scale: float, device: torch.device) -> Tensor:
    """``[frames, rows, columns, width]`` float32: first quarter from the frame, then column, then row.

    ``scale`` divides row and column numbers. Sizes other than the constructor's use the same numbering.
    """
    (frames, rows, columns), spatial = size, width * 3 // 4
    frame = _waves(torch.arange(frames, device=device), width // 4)[:, None, None]
    column = _waves(torch.arange(columns, device=device) / scale, spatial // 2)[None, None]
    row = _waves(torch.arange(rows, device=device) / scale, spatial // 2)[None, :, None]
    return torch.cat([part.expand(*size, -1) for part in (frame, column, row)], dim=-1).float()


class FramePatches(nn.Module):
    """Embeds each frame's patches and adds positions.

    ``[batch, channels, F, H, W]`` -> ``[batch, F, H/p, W/p, width]``.
    """

    def __init__(self, patch: int, channels: int, width: int, scale: float) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, video: Tensor) -> Tensor:
        frames = self.proj(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), -1))
        tokens = frames.permute(0, 1, 3, 4, 2)
        size = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        return tokens + video_positions(size, self.width, self.scale, tokens.device).to(tokens.dtype)


def _box(name: str, ratios: Sequence[int]) -> Box:
    if len(ratios) != 3 or min(ratios) < 1:
        raise ArchitectureError(f"{name}={list(ratios)} must be three positive numbers: frames, rows, columns.")
    frames, rows, columns = ratios
    return frames, rows, columns


def _proxy_strides(window: Box, proxy: Box) -> Box:
    """How many proxies a window has along each axis, which is the stride of the tokens of one proxy.

    Along frames it is 1 whatever ``proxy`` says: a proxy takes tokens from all frames of its window.
    """
    if window[1] % proxy[1] or window[2] % proxy[2]:
        raise ArchitectureError(
            f"proxy_compress_ratios={list(proxy)} must divide compress_ratios={list(window)}: a window has a whole "
            "number of proxies along rows and columns."
        )
    return 1, window[1] // proxy[1], window[2] // proxy[2]


def _refuse_unknown(**given: object) -> None:
    known = {"norm_type": "ada_norm_single", "attention_type": "default", "norm_elementwise_affine": False}
    for name, value in given.items():
        if value != known[name]:
            raise ArchitectureError(
                f"PT-DiT with {name}={value!r} is not known to vqcompress: no published model uses it, so neither its "
                f"parameter names nor its outputs can be checked. Use {name}={known[name]!r}."
            )


class PTDiT(Network):
    """The denoiser, with the argument and parameter names of the official ``PTDiTDiffuser``.

    ``compress_ratios``: tokens of a window along frames, rows, columns. ``proxy_compress_ratios``: tokens per proxy
    along rows and columns; if that is less than a window, a window has several proxies. ``sample_size`` and ``frame``
    are the latent's trained size; other multiples of ``patch_size·compress_ratios`` work too. ``dropout``,
    ``norm_num_groups``, ``num_embeds_ada_norm`` and ``upcast_attention`` are part of the official signature and have no
    effect on this network's output. Raises ArchitectureError for arguments that no published model uses.
    """

    @register_to_config
    def __init__(
        self,
        num_heads: int = 16,
        head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = 8,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = 1152,
        attention_bias: bool = True,
        sample_size: int = 32,
        frame: int = 1,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
        caption_channels: int | None = 4096,
        compress_ratios: Sequence[int] = (1, 8, 8),
        proxy_compress_ratios: Sequence[int] = (1, 8, 8),
        shift_window: bool = True,
    ) -> None:
        super().__init__()
        _refuse_unknown(
            norm_type=norm_type, attention_type=attention_type, norm_elementwise_affine=norm_elementwise_affine
        )
        width = num_heads * head_dim
        self.window = _box("compress_ratios", compress_ratios)
        strides = _proxy_strides(self.window, _box("proxy_compress_ratios", proxy_compress_ratios))
        if width % 16:
            raise ArchitectureError(f"num_heads·head_dim={width} must be a multiple of 16 for positions on three axes.")
        text_width = cross_attention_dim or width
        shape = BlockShape(width, num_heads, text_width, attention_bias, activation_fn, norm_eps, strides, shift_window)
        self.pos_embed = FramePatches(patch_size, in_channels, width, max(sample_size // 64, 1))
        self.adaln_single = AdaLayerNormSingle(width)
        if caption_channels is not None:
            self.caption_projection = PixArtAlphaTextProjection(caption_channels, text_width)
        self.transformer_blocks = nn.ModuleList(PTDiTBlock(shape) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch_size**2 * (out_channels or in_channels))

    def rebuilt_buffers(self) -> dict[str, Tensor]:
        """The position table that official files store, for the constructor's size: ``[1, frame, tokens, width]``."""
        side, width = self.config["sample_size"] // self.config["patch_size"], self.pos_embed.width
        size = (self.config["frame"], side, side)
        table = video_positions(size, width, self.pos_embed.scale, torch.device("cpu"))
        return {"pos_embed.pos_embed": table.flatten(1, 2)[None]}

    def _context(self, windows: Windows, modulation: Tensor, text: Tensor, mask: Tensor | None) -> BlockContext:
        """Compute everything for this call's size, because a cached shift mask would be wrong for another size."""
        if self.config["caption_channels"] is not None:
            text = self.caption_projection(text)
        if mask is not None:
            mask = ((1 - mask.to(text.dtype)) * ABSENT)[:, None, None, :]
        shift_mask = windows.shift_mask(text.device).repeat(len(text), 1, 1)[:, None]
        return BlockContext(windows, modulation.unflatten(1, (6, -1)), text, mask, shift_mask)

    def _finish(self, video: Tensor, embedded_time: Tensor) -> Tensor:
        """``[batch, F, h, w, width]`` -> ``[batch, channels, F, H, W]``."""
        parts = self.scale_shift_table.to(video.dtype) + embedded_time[:, None]
        shift, scale = (part[:, :, None, None] for part in parts.split(1, dim=1))
        patch = self.config["patch_size"]
        cells = self.proj_out(self.norm_out(video) * (1 + scale) + shift).unflatten(-1, (patch, patch, -1))
        return cells.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity (and, if trained, the variance) of the flow, ``[batch, out_channels, …]``.

        ``hidden_states``: ``[batch, in_channels, frames or views, height, width]``; ``timestep``: ``[batch]`` or a
        scalar, in [0, 1000], the same for the whole batch; ``encoder_hidden_states``:
        ``[batch, length, caption_channels]``; ``encoder_attention_mask``: ``[batch, length]``, 1 for text.
        """
        batch, dtype = len(hidden_states), hidden_states.dtype
        tokens = self.pos_embed(hidden_states)
        windows = Windows((tokens.shape[1], tokens.shape[2], tokens.shape[3]), self.window)
        modulation, embedded = self.adaln_single(timestep.expand(batch), batch_size=batch, hidden_dtype=dtype)
        context = self._context(windows, modulation, encoder_hidden_states, encoder_attention_mask)
        windowed = windows.split(tokens)
        for block in self.transformer_blocks:
            windowed = block(windowed, context)
        return self._finish(windows.join(windowed), embedded)


def pt_dit_from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> PTDiT:
    """PTDiT with official weights. A stored position table is compared with the computed one and dropped."""
    network = construct(PTDiT, config)
    return load_strictly(network, state_dict, rebuilt=network.rebuilt_buffers())
