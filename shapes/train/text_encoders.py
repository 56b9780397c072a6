"""Train the text encoders before the denoiser: a classifier on them names the caption's attributes.

Trained together with the denoiser, the encoders stay on a plateau for thousands of steps. Which object a caption names
first means nothing without the relation's word, the word means nothing without the order, and only the noisiest
timesteps depend on either. A classifier's loss teaches both encoders in minutes, and the denoiser starts from useful
text features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vqcompress.shapes.caption_parser import parse_caption
from vqcompress.shapes.posters.glyphs import LETTERS
from vqcompress.shapes.posters.scenes import IN_FRONT, TEXTURES
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, RADII, SHAPES
from vqcompress.shapes.train.networks import POOLED_WIDTH, TEXT_WIDTH
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.trainer import Log, train

BATCH = 64
SMOOTHING = 0.02  # keeps the hidden states from growing without bound
ATTRIBUTES = {
    "background": 3,
    "count": 3,
    "axis": 3,
    "size": 3,
    "color": 8,
    "shape": 8,
    "second color": 9,
    "second shape": 9,
}
"""Number of classes of each attribute."""


def attributes_of(caption: str) -> list[int]:
    """A caption's class of each of `ATTRIBUTES`; objects by position, the upper or left one first."""
    content = parse_caption(caption)
    objects = [*content.objects[:2], None][:2]
    relation = content.relation
    if relation in ("below", "to the right of"):
        objects.reverse()
    colors, shapes = list(COLORS), list(SHAPES)
    first, second = objects
    axis = ("above", "below").count(relation) + 2 * ("to the left of", "to the right of").count(relation)
    return [
        list(BACKGROUNDS).index(content.background),
        len(content.objects) - 1,
        axis,
        0 if content.size is None else 1 + list(RADII).index(content.size),
        colors.index(first[0]),
        shapes.index(first[1]),
        colors.index(second[0]) if second else len(colors),
        shapes.index(second[1]) if second else len(shapes),
    ]


POSTER_ATTRIBUTES = {
    **ATTRIBUTES,
    "axis": 4,
    "texture": len(TEXTURES),
    "second texture": 1 + len(TEXTURES),
    "letter": 1 + len(LETTERS),
    "second letter": 1 + len(LETTERS),
}
"""`ATTRIBUTES` of posters, whose axis may point to the front."""


def poster_attributes_of(caption: str) -> list[int]:
    """A poster caption's class of each of `POSTER_ATTRIBUTES`; of overlapping objects the front one is first."""
    content = parse_caption(caption)
    textures = [TEXTURES.index(name) for name in content.textures]
    if content.relation in ("below", "to the right of"):
        textures.reverse()
    letters = [1 + LETTERS.index(letter) for letter in content.label] or [0, 0]
    found = dict(zip(ATTRIBUTES, attributes_of(caption), strict=True))
    if content.relation == IN_FRONT:
        found["axis"] = 3
    return [*found.values(), textures[0], *(textures[1:] or [len(TEXTURES)]), *letters]


class CaptionClassifier(torch.nn.Module):
    """Both encoders with a linear classifier of ``attributes`` on each of the outputs that the denoiser reads."""

    def __init__(self, text_encoder, text_encoder_2, attributes: Mapping[str, int] = ATTRIBUTES) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.sizes = list(attributes.values())
        classes = sum(self.sizes)
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(width, classes) for width in (TEXT_WIDTH, TEXT_WIDTH, POOLED_WIDTH)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 [b, t] -> logits of every token [b, t, 2, classes] and of the pooled text [b, classes]."""
        first = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        states = [head(h) for head, h in zip(self.heads, (first, second.hidden_states[-2]), strict=False)]
        return torch.stack(states, 2), self.heads[2](second.text_embeds)


def train_text_encoders(
    classifier: CaptionClassifier, tokens: Tensor, targets: Tensor, schedule: Schedule, seed: int, log: Log
) -> None:
    """Train ``classifier`` in place on tokens int [n, t] and targets int64 [n, attributes]."""
    end = classifier.text_encoder.config.eos_token_id

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(tokens), (BATCH,), generator=generator)
        return _loss(classifier, tokens[index].long(), targets[index], end)

    train(classifier, loss_of, schedule, seed, log, weight_decay=0.01)


@torch.no_grad()
def attribute_accuracy(classifier: CaptionClassifier, tokens: Tensor, targets: Tensor) -> float:
    """Share of captions whose attributes are all right when read from the pooled text."""
    logits = classifier(tokens.long())[1].split(classifier.sizes, -1)
    correct = torch.stack([each.argmax(-1) == targets[:, i] for i, each in enumerate(logits)], 1)
    return correct.all(1).float().mean().item()


def _loss(classifier: CaptionClassifier, tokens: Tensor, targets: Tensor, end: int) -> Tensor:
    """Cross entropy at the end mark and the padding behind it, where causal attention has seen the whole caption."""
    states, pooled = classifier(tokens)
    captions, places = torch.where(tokens == end)
    logits = torch.cat([states[captions, places].flatten(0, 1), pooled])
    truth = torch.cat([targets[captions].repeat_interleave(2, 0), targets])
    parts = logits.split(classifier.sizes, -1)
    losses = [functional.cross_entropy(q, truth[:, i], label_smoothing=SMOOTHING) for i, q in enumerate(parts)]
    return torch.stack(losses).mean()
