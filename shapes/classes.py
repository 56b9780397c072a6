"""The classes of `shapes-moe`: single objects, one class for each background, colour and shape."""

from __future__ import annotations

import numpy as np

from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, with_article

CLASSES = tuple(
    f"{with_article(f'{color} {shape}')} on a {background} background"
    for background in BACKGROUNDS
    for color in COLORS
    for shape in SHAPES
)
"""The caption of every class, by class number."""


def class_captions(count: int = len(CLASSES)) -> list[str]:
    """``count`` classes in a fixed shuffled order, repeated from the start when all were used."""
    order = np.random.default_rng(0).permutation(len(CLASSES))
    return [CLASSES[order[i % len(CLASSES)]] for i in range(count)]
