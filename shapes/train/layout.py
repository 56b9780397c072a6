"""A scene's layout, and an auxiliary head that predicts it while a transformer is trained.

A transformer that only learns v takes thousands of steps until colours stay with their shapes. The head predicts from a
middle block which object lies at each place, which binds them from the first step. This is representation alignment (Yu
et al. 2025, arXiv:2410.06940), with the renderer's labels in place of a pretrained network's features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vqcompress.shapes.render import SIZE, coverage
from vqcompress.shapes.scenes import COLORS, SHAPES, Scene
from vqcompress.shapes.train.autoencoder import PATCH

SIDE = SIZE // PATCH
EMPTY = 0  # the class of a place without an object
CLASSES = 1 + len(COLORS) * len(SHAPES)
MIN_COVERAGE = 0.2  # share of a place that an object must cover to be its class
WEIGHT = 0.1  # of the head's loss beside that of v


def layout(scene: Scene) -> np.ndarray:
    """uint8 [8, 8]: the class (colour × shape) of the object at each latent place, or EMPTY."""
    places = np.zeros((SIDE, SIDE), np.uint8)
    for item in scene.items:
        share = coverage(item.shape, item.x, item.y, item.radius).reshape(SIDE, PATCH, SIDE, PATCH).mean((1, 3))
        object_class = 1 + list(COLORS).index(item.color) * len(SHAPES) + list(SHAPES).index(item.shape)
        places[share >= MIN_COVERAGE] = object_class
    return places


class LayoutHead(torch.nn.Module):
    """Predicts the layout from the tokens [b, 64, width] that ``block`` outputs in training."""

    def __init__(self, block: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.read = torch.nn.Sequential(
            torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, CLASSES)
        )
        self._tokens: Tensor | None = None
        block.register_forward_hook(self._keep)

    def loss(self, layouts: Tensor) -> Tensor:
        """Weighted cross-entropy against int64 [b, 8, 8] for the batch that ran last; a scalar."""
        logits = self.read(self._tokens).flatten(0, 1)
        self._tokens = None
        return WEIGHT * torch.nn.functional.cross_entropy(logits.float(), layouts.flatten())

    def _keep(self, block: torch.nn.Module, args: tuple, tokens: Tensor) -> None:
        if self.training:
            self._tokens = tokens
