"""What lies where in a scene, and a reader of it that trains with a transformer and is thrown away.

A transformer that only learns v takes thousands of steps until its colours stay with their shapes. Asked in its middle what
lies at every place, it has to settle that from the first step on. That is representation alignment (Yu et al. 2025,
arXiv:2410.06940), with the renderer's own names in place of the features of a pretrained network.
"""

from __future__ import annotations

import numpy as np
import torch

from vqcompress.shapes.autoencoder import PATCH
from vqcompress.shapes.render import SIZE, coverage
from vqcompress.shapes.scenes import COLORS, SHAPES, Scene

SIDE = SIZE // PATCH
GROUND = 0  # the class of a place without an object
CLASSES = 1 + len(COLORS) * len(SHAPES)
ENOUGH = 0.2  # share of a place that an object covers to be named there
WEIGHT = 0.1  # of the reader's loss beside that of v


def layout(scene: Scene) -> np.ndarray:
    """uint8 [8, 8]: the class, colour by shape, of the object that lies at each latent place, or GROUND."""
    places = np.zeros((SIDE, SIDE), np.uint8)
    for item in scene.items:
        share = coverage(item.shape, item.x, item.y, item.radius).reshape(SIDE, PATCH, SIDE, PATCH).mean((1, 3))
        places[share >= ENOUGH] = 1 + list(COLORS).index(item.color) * len(SHAPES) + list(SHAPES).index(item.shape)
    return places


class LayoutReader(torch.nn.Module):
    """Names what lies where from the tokens [b, 64, width] that one block of a transformer gives."""

    def __init__(self, block: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.read = torch.nn.Sequential(
            torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, CLASSES)
        )
        self._seen: torch.Tensor | None = None
        block.register_forward_hook(self._keep)

    def loss(self, layouts: torch.Tensor) -> torch.Tensor:
        """Weighted cross-entropy against int64 [b, 8, 8] of the batch that the block saw last; a scalar."""
        answers = self.read(self._seen).flatten(0, 1)
        self._seen = None
        return WEIGHT * torch.nn.functional.cross_entropy(answers.float(), layouts.flatten())

    def _keep(self, block: torch.nn.Module, args: tuple, tokens: torch.Tensor) -> None:
        if self.training:
            self._seen = tokens
