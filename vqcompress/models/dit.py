"""DiT (arXiv 2212.09748) and SiT (arXiv 2401.08740): one network with the official names and forward signature.

diffusers' own DiT class has other time frequencies and another norm epsilon than the official model. Its output
differs by up to half of the output's range, so official checkpoints run on this class.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vqcompress.models.attention import SelfAttention
from vqcompress.models.embeddings import LabelEmbedder, PatchEmbedder, TimestepEmbedder, sincos_grid, unpatchify
from vqcompress.models.feed_forward import Mlp
from vqcompress.models.guidance import guided
from vqcompress.models.modulation import FinalLayer, modulate, modulation, plain_norm
from vqcompress.models.network import Network
from vqcompress.models.official_weights import construct, load_strictly


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.adaLN_modulation = modulation(width, 6)
        self.norm1 = plain_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = plain_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift, scale))
        return x + mlp_gate.unsqueeze(1) * self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale))


class DiT(Network):
    """Class-conditional diffusion transformer with the constructor arguments of the official class.

    ``forward(x [n, in_channels, s, s], t [n] in [0, 1000), y [n] labels)`` returns [n, C, s, s], where C is twice
    ``in_channels`` with ``learn_sigma`` (noise, then variance). Label ``num_classes`` is the null label.
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
    ):
        super().__init__()
        self.x_embedder = PatchEmbedder(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        positions = sincos_grid(hidden_size, input_size // patch_size)
        self.pos_embed = nn.Parameter(positions.unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, in_channels * (2 if learn_sigma else 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        condition = self.t_embedder(t, x.dtype) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        return unpatchify(self.final_layer(tokens, condition), self.config["patch_size"])

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """Guided output for a batch of [conditional, null] halves; see ``guidance.guided``."""
        return guided(lambda both: self(both, t, y), x, cfg_scale)


class SiT(DiT):
    """DiT's network as the velocity of an interpolant: t is in [0, 1], and the variance half is never returned."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out = super().forward(x, t, y)
        return out.chunk(2, dim=1)[0] if self.config["learn_sigma"] else out


def dit_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> DiT:
    """DiT with the weights of a facebookresearch/DiT checkpoint."""
    return load_strictly(construct(DiT, config), state_dict)


def sit_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> SiT:
    """SiT with the weights of a willisma/SiT checkpoint."""
    return load_strictly(construct(SiT, config), state_dict)
