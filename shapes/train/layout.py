"""A scene's layout, and an auxiliary head that predicts it while a denoiser is trained.

A transformer that only learns v takes thousands of steps until colours stay with their shapes. The head predicts from a
middle block which object lies at each place, which binds them from the first step. This is representation alignment (Yu
et al. 2025, arXiv:2410.06940), with the renderer's labels in place of a pretrained network's features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vqcompress.shapes.posters.glyphs import LETTERS
from vqcompress.shapes.posters.scenes import SIZE as POSTER_SIZE
from vqcompress.shapes.posters.scenes import TEXTURES, Poster
from vqcompress.shapes.render import SIZE, coverage
from vqcompress.shapes.scenes import COLORS, SHAPES, Scene
from vqcompress.shapes.train.autoencoder import PATCH

SIDE = SIZE // PATCH
EMPTY = 0  # the class of a place without an object
CLASSES = 1 + len(COLORS) * len(SHAPES)
POSTER_CLASSES = (1 + len(COLORS), 1 + len(SHAPES), 1 + len(TEXTURES), 1 + len(LETTERS))
POSTER_PLACE = POSTER_SIZE // SIDE  # pixels a side of one of a poster's 8x8 places
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


def poster_layout(poster: Poster) -> np.ndarray:
    """uint8 [4, 8, 8]: colour, shape, texture and letter at each place of a poster, or EMPTY."""
    places = np.zeros((len(POSTER_CLASSES), SIDE, SIDE), np.uint8)
    for item in reversed(poster.items):
        share = item.mask().reshape(SIDE, POSTER_PLACE, SIDE, POSTER_PLACE).mean((1, 3))
        names = list(COLORS).index(item.color), SHAPES.index(item.shape), TEXTURES.index(item.texture)
        places[:3, share >= MIN_COVERAGE] = 1 + np.array(names)[:, None]
    for index, letter in enumerate(poster.label):
        places[3, -1, SIDE - 2 + index] = 1 + LETTERS.index(letter)
    return places


class LayoutHead(torch.nn.Module):
    """Predicts the layout from the tokens [b, 64, width] that ``block`` outputs in training.

    A layout has one plane for each of ``classes``, their numbers of classes.
    """

    def __init__(self, block: torch.nn.Module, width: int, classes: tuple[int, ...] = (CLASSES,)) -> None:
        super().__init__()
        self.classes = classes
        out = torch.nn.Linear(width, sum(classes))
        self.read = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.SiLU(), out)
        self._tokens: Tensor | None = None
        block.register_forward_hook(self._keep)

    def loss(self, layouts: Tensor) -> Tensor:
        """Weighted cross-entropy against int64 [b, planes, 8, 8] for the batch that ran last; a scalar."""
        logits = self.read(self._tokens).flatten(0, 1).float().split(self.classes, -1)
        self._tokens = None
        planes = layouts.reshape(len(layouts), len(self.classes), -1).unbind(1)
        losses = [torch.nn.functional.cross_entropy(x, y.flatten()) for x, y in zip(logits, planes, strict=True)]
        return WEIGHT * torch.stack(losses).sum()

    def _keep(self, block: torch.nn.Module, args: tuple, tokens: Tensor) -> None:
        if self.training:
            self._tokens = tokens.float()  # autocast may have left them in bfloat16
