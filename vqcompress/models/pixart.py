"""PixArt-α (arXiv 2310.00426) with official names and forward signature, run by diffusers' PixArtTransformer2DModel.

``PixArt(...).transformer`` is the diffusers module, ready for a PixArtAlphaPipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models.guidance import guided
from vqcompress.models.official_weights import check_names, construct, load_strictly

# Official layer -> layers in diffusers. Several layers split the official rows equally, in order.
_LAYERS: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "final_layer.linear": ("proj_out",),
}
_SIZE_LAYERS: dict[str, tuple[str, ...]] = {
    "csize_embedder.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
}
_BLOCK_LAYERS: dict[str, tuple[str, ...]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
# Official arguments that have no effect on a forward pass in eval mode.
_INERT = {"class_dropout_prob", "drop_path", "window_size", "config"}


class PixArt(nn.Module):
    """Text-conditional diffusion transformer with the constructor arguments of the official classes.

    ``sizes`` selects the 1024-MS model. Its inputs include the image's size and aspect ratio (``data_info``), and it
    takes any grid.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 120,
        lewei_scale: float = 1.0,
        sizes: bool = False,
    ):
        super().__init__()
        self.depth, self.pred_sigma, self.sizes, self.mlp_ratio = depth, pred_sigma, sizes, mlp_ratio
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=num_heads,
            attention_head_dim=hidden_size // num_heads,
            in_channels=in_channels,
            out_channels=in_channels * (2 if pred_sigma else 1),
            num_layers=depth,
            cross_attention_dim=hidden_size,
            sample_size=input_size,
            patch_size=patch_size,
            interpolation_scale=lewei_scale,
            use_additional_conditions=sizes,
            caption_channels=caption_channels,
        )
        if mlp_ratio != 4:
            self._resize_mlps(hidden_size, int(hidden_size * mlp_ratio))
        self.register_buffer("null_caption", torch.zeros(model_max_length, caption_channels))

    def _resize_mlps(self, width: int, hidden: int) -> None:
        # diffusers has no argument for the MLP width, so this module cannot be saved as a plain diffusers transformer.
        for block in self.transformer.transformer_blocks:
            block.ff = FeedForward(width, inner_dim=hidden, activation_fn="gelu-approximate")

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        data_info: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return noise (and variance, with ``pred_sigma``) [n, C, h, w].

        ``x``: [n, in_channels, h, w]; ``timestep``: [n] in [0, 1000); ``y``: [n, 1, tokens, caption_channels];
        ``mask``: [n or 1, 1, 1, tokens], zero for padding tokens; ``data_info``: "img_hw" [n, 2] in pixels and
        "aspect_ratio" [n, 1], used only by the 1024-MS model.
        """
        if mask is not None:
            mask = mask.reshape(-1, mask.shape[-1]) != 0
            mask = mask.repeat(len(x) // len(mask), 1)
        out = self.transformer(
            x,
            encoder_hidden_states=y.squeeze(1),
            timestep=timestep,
            encoder_attention_mask=mask,
            added_cond_kwargs=self._size_conditions(data_info, x.dtype),
        )
        return out.sample

    def _size_conditions(self, data_info: Mapping[str, Tensor] | None, dtype: torch.dtype) -> dict[str, Tensor] | None:
        if not self.sizes:
            return None
        if data_info is None:
            raise ArchitectureError('The PixArt 1024-MS model needs data_info with "img_hw" and "aspect_ratio".')
        return {"resolution": data_info["img_hw"].to(dtype), "aspect_ratio": data_info["aspect_ratio"].to(dtype)}

    def forward_with_cfg(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        cfg_scale: float,
        mask: Tensor | None = None,
        data_info: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Guided output for a batch of [conditional, null] halves; see ``guidance.guided``."""
        return guided(lambda both: self(both, timestep, y, mask, data_info), x, cfg_scale)

    def forward_with_dpmsolver(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        data_info: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the noise without the variance, as DPM-Solver expects it."""
        out = self(x, timestep, y, mask, data_info)
        return out.chunk(2, dim=1)[0] if self.pred_sigma else out


def name_map(depth: int, sizes: bool) -> dict[str, tuple[str, ...]]:
    """Map every official parameter name to names in ``PixArt``. Several names split the official rows equally."""
    layers = _LAYERS | (_SIZE_LAYERS if sizes else {})
    for block in range(depth):
        for official, targets in _BLOCK_LAYERS.items():
            layers[f"blocks.{block}.{official}"] = tuple(f"transformer_blocks.{block}.{t}" for t in targets)
    names = {
        f"{official}.{leaf}": tuple(f"transformer.{target}.{leaf}" for target in targets)
        for official, targets in layers.items()
        for leaf in ("weight", "bias")
    }
    names |= {
        f"blocks.{i}.scale_shift_table": (f"transformer.transformer_blocks.{i}.scale_shift_table",)
        for i in range(depth)
    }
    return names | {
        "final_layer.scale_shift_table": ("transformer.scale_shift_table",),
        "y_embedder.y_embedding": ("null_caption",),
    }


def _renamed(state_dict: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Tensor]]:
    for official, targets in names.items():
        yield from zip(targets, state_dict[official].chunk(len(targets)), strict=True)


def _effective(config: Mapping[str, object]) -> dict[str, object]:
    if config.get("window_block_indexes") or config.get("use_rel_pos"):
        raise ArchitectureError("PixArt with window attention or relative positions was never released; not supported.")
    return {k: v for k, v in config.items() if k not in _INERT | {"window_block_indexes", "use_rel_pos"}}


def pixart_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> PixArt:
    """PixArt with the weights of a PixArt-alpha checkpoint. Weights with size embedders are the 1024-MS model's.

    The official ``pos_embed`` is a buffer. It is computed by formula here, so the weights need not have it.
    """
    sizes = any(name.startswith("csize_embedder.") for name in state_dict)
    model = construct(PixArt, {**_effective(config), "sizes": sizes})
    names = name_map(model.depth, sizes)
    check_names("PixArt", names.keys(), state_dict.keys() - {"pos_embed"})
    return load_strictly(model, dict(_renamed(state_dict, names)))
