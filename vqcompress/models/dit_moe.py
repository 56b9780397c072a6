"""DiT-MoE (arXiv 2407.11633): DiT whose MLPs are mixtures of experts, in both published attention layouts."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vqcompress.models.attention import NormedSelfAttention, SelfAttention
from vqcompress.models.embeddings import LabelEmbedder, PatchEmbedder, TimestepEmbedder, sincos_grid, unpatchify
from vqcompress.models.guidance import guided
from vqcompress.models.mixture import Mixture
from vqcompress.models.modulation import FinalLayer, modulate, modulation, plain_norm
from vqcompress.models.network import Network
from vqcompress.models.official_weights import construct, load_strictly

# The shared expert's hidden width is that of two experts, each with the model's width as hidden width.
_SHARED_EXPERTS = 2


class MoEBlock(nn.Module):
    """DiT's block with a mixture in place of the MLP."""

    def __init__(self, width: int, attention: nn.Module, mixture: Mixture):
        super().__init__()
        self.adaLN_modulation = modulation(width, 6)
        self.norm1 = plain_norm(width)
        self.attn = attention
        self.norm2 = plain_norm(width)
        self.moe = mixture

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, moe_shift, moe_scale, moe_gate = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift, scale))
        return x + moe_gate.unsqueeze(1) * self.moe(modulate(self.norm2(x), moe_shift, moe_scale))


class DiTMoE(Network):
    """Class-conditional mixture-of-experts transformer with the constructor arguments of the official class.

    ``use_flash_attn`` selects the attention layout of the XL and G checkpoints (``Wqkv``, normed heads), not a kernel.
    ``pretraining_tp`` sliced the experts' weights in training. The unsliced product here computes the same function,
    so the value is only stored.

    ``forward(x [n, in_channels, s, s], t [n], y [n] labels)`` returns [n, C, s, s], where C is twice ``in_channels``
    with ``learn_sigma``. S and B take t in [0, 1000). XL and G are rectified flows with t in [0, 1]; their velocity is
    the first half of C.
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
        mlp_ratio: float = 4,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        num_experts: int = 8,
        num_experts_per_tok: int = 2,
        pretraining_tp: int = 2,
        learn_sigma: bool = True,
        use_flash_attn: bool = False,
    ):
        super().__init__()
        self.x_embedder = PatchEmbedder(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        positions = sincos_grid(hidden_size, input_size // patch_size)
        self.pos_embed = nn.Parameter(positions.unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(self._block() for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, in_channels * (2 if learn_sigma else 1))

    def _block(self) -> MoEBlock:
        args = self.config
        width = args["hidden_size"]
        attention = NormedSelfAttention if args["use_flash_attn"] else SelfAttention
        mixture = Mixture(
            width,
            hidden=int(width * args["mlp_ratio"]),
            shared_hidden=_SHARED_EXPERTS * width,
            experts=args["num_experts"],
            chosen=args["num_experts_per_tok"],
        )
        return MoEBlock(width, attention(width, args["num_heads"]), mixture)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        condition = self.t_embedder(t, x.dtype) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        return unpatchify(self.final_layer(tokens, condition), self.config["patch_size"])

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """Guided output for a batch of [conditional, null] halves; see ``guidance.guided``."""
        return guided(lambda both: self(both, t, y), x, cfg_scale)


def dit_moe_from_official(config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> DiTMoE:
    """DiT-MoE with the weights of a feizc/DiT-MoE checkpoint. The weights' names determine the attention layout."""
    layout = any(name.endswith(".attn.Wqkv.weight") for name in state_dict)
    return load_strictly(construct(DiTMoE, {**config, "use_flash_attn": layout}), state_dict)
