"""Initialise the extra caption tokens of `shapes-dit` with attributes of the caption.

With a random start every extra token mixes all attributes, and colours swap between objects until training has
separated them. The attributes are linear in the pooled text (text_encoders.py), so least squares can give each token
its own before the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.shapes.train.dataset import tokenize
from vqcompress.shapes.train.networks import ATTRIBUTE_TOKENS, POOLED_WIDTH
from vqcompress.shapes.train.text_encoders import ATTRIBUTES, attributes_of

TOKEN_ATTRIBUTES = (
    ("background", "count", "size"),
    ("color", "shape", "axis", "count", "size"),
    ("second color", "second shape", "axis", "count", "size"),
    ("axis", "count", "background"),
)
RIDGE = 1e-3  # of the pooled text's mean square
SPREAD = 0.7  # standard deviation of the random directions


@torch.no_grad()
def set_attribute_tokens(transformer, text_encoder_2, tokenizer, captions: list[str]) -> None:
    """Write the first caption projection's columns of the pooled text, fitted on ``captions``."""
    pooled = text_encoder_2(tokenize(tokenizer, captions)).text_embeds
    weight, bias = fit_attributes(pooled, torch.tensor([attributes_of(text) for text in captions]))
    layer = transformer.caption_projection.linear_1
    columns = layer.weight[:, -ATTRIBUTE_TOKENS * POOLED_WIDTH :].unflatten(1, (ATTRIBUTE_TOKENS, POOLED_WIDTH))
    for token, names in enumerate(TOKEN_ATTRIBUTES):
        classes = torch.cat([_classes_of(name) for name in names])
        directions = SPREAD * torch.randn(len(layer.weight), len(classes))
        columns[:, token] = directions @ weight[classes]
        layer.bias += directions @ bias[classes] / ATTRIBUTE_TOKENS


def fit_attributes(pooled: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares from pooled text [n, p] to one-hot ``targets`` int64 [n, attributes]: weight [classes, p], bias."""
    truth = torch.cat([one_hot(targets[:, i], size) for i, size in enumerate(ATTRIBUTES.values())], 1)
    centred = pooled - pooled.mean(0)
    square = centred.T @ centred / len(pooled)
    square += RIDGE * square.trace() / len(square) * torch.eye(len(square))
    weight = torch.linalg.solve(square, centred.T @ (truth - truth.mean(0)) / len(pooled)).T
    return weight, truth.mean(0) - weight @ pooled.mean(0)


def one_hot(targets: Tensor, classes: int) -> Tensor:
    """int64 [n] -> float32 [n, classes]."""
    return torch.nn.functional.one_hot(targets, classes).float()


def _classes_of(attribute: str) -> Tensor:
    """Where the attribute's classes stand among those of all attributes."""
    start = 0
    for name, size in ATTRIBUTES.items():
        if name == attribute:
            return torch.arange(start, start + size)
        start += size
    raise KeyError(attribute)
