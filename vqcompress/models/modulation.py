"""Adaptive LayerNorm: a condition shifts, scales and gates all tokens in the same way (DiT section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn


def plain_norm(width: int) -> nn.LayerNorm:
    """LayerNorm without weights: shift and scale come from the condition."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def modulation(width: int, parts: int) -> nn.Sequential:
    """Condition [n, width] -> [n, parts·width]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply shift and scale [n, width] to tokens [n, tokens, width]."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class FinalLayer(nn.Module):
    """Tokens [n, tokens, width] and condition [n, width] -> [n, tokens, patch·patch·channels]."""

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.adaLN_modulation = modulation(width, 2)
        self.norm_final = plain_norm(width)
        self.linear = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def adaln_zero_(model: nn.Module) -> None:
    """Initialise every block as the identity, as in DiT's training (adaLN-Zero)."""
    for name, part in model.named_modules():
        if name.endswith("adaLN_modulation.1") or name == "final_layer.linear":
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
