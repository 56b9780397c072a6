"""Train the text encoders before the denoiser, as CLIP's are: to tell what is where from the caption alone.

Trained together with the denoiser, the encoders sit on a plateau for thousands of steps: which object a caption names first
tells nothing until the relation's word is read too, that word tells nothing until the order is, and only the noisiest
timesteps ask for either. Asked directly, both encoders know it in minutes, and the denoiser starts from captions that are
already understood.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from vqcompress.shapes.claims import read_claim
from vqcompress.shapes.descent import descend
from vqcompress.shapes.networks import POOLED_WIDTH, TEXT_WIDTH
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, RADII, SHAPES
from vqcompress.shapes.schedule import Schedule

BATCH = 64
SMOOTHING = 0.02  # keeps the hidden states from growing without end
QUESTIONS = {
    "background": 3,
    "count": 3,
    "axis": 3,
    "size": 3,
    "color": 8,
    "shape": 8,
    "second color": 9,
    "second shape": 9,
}


def answers(caption: str) -> list[int]:
    """What a caption says of the picture, by position: the upper or left object first; a class for each of QUESTIONS."""
    claim = read_claim(caption)
    looks = [*claim.looks[:2], None][:2]
    if claim.relation in ("below", "to the right of"):
        looks.reverse()
    colors, shapes = list(COLORS), list(SHAPES)
    first, second = looks
    axis = ("above", "below").count(claim.relation) + 2 * ("to the left of", "to the right of").count(claim.relation)
    return [
        list(BACKGROUNDS).index(claim.background),
        len(claim.looks) - 1,
        axis,
        0 if claim.size is None else 1 + list(RADII).index(claim.size),
        colors.index(first[0]),
        shapes.index(first[1]),
        colors.index(second[0]) if second else len(colors),
        shapes.index(second[1]) if second else len(shapes),
    ]


class Reader(torch.nn.Module):
    """Both encoders with a linear answer sheet on each output that the denoiser reads."""

    def __init__(self, text_encoder, text_encoder_2) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        sheet = sum(QUESTIONS.values())
        self.sheets = torch.nn.ModuleList(
            torch.nn.Linear(width, sheet) for width in (TEXT_WIDTH, TEXT_WIDTH, POOLED_WIDTH)
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens int64 [b, t] -> answer logits of every token [b, t, 2, classes] and of the pooled text [b, classes]."""
        first = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        states = [sheet(h) for sheet, h in zip(self.sheets, (first, second.hidden_states[-2]), strict=False)]
        return torch.stack(states, 2), self.sheets[2](second.text_embeds)


def train_text(
    reader: Reader, tokens: torch.Tensor, facts: torch.Tensor, schedule: Schedule, seed: int, tell: Callable
):
    """Train `reader` in place on tokens int [n, t] and facts int64 [n, questions]; `tell(step, loss)` hears of the progress."""
    end = reader.text_encoder.config.eos_token_id

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(tokens), (BATCH,), generator=generator)
        return _loss(reader, tokens[index].long(), facts[index], end)

    descend(reader, loss_of, schedule, seed, tell, weight_decay=0.01)


@torch.no_grad()
def reading_accuracy(reader: Reader, tokens: torch.Tensor, facts: torch.Tensor) -> float:
    """Share of captions of which the pooled text answers every question."""
    logits = reader(tokens.long())[1].split(list(QUESTIONS.values()), -1)
    right = torch.stack([q.argmax(-1) == facts[:, i] for i, q in enumerate(logits)], 1)
    return right.all(1).float().mean().item()


def _loss(reader: Reader, tokens: torch.Tensor, facts: torch.Tensor, end: int) -> torch.Tensor:
    """Cross entropy of the answers, at the end mark and behind it, where causal attention has seen the whole caption."""
    states, pooled = reader(tokens)
    rows, columns = torch.where(tokens == end)
    sheets = torch.cat([states[rows, columns].flatten(0, 1), pooled])
    truth = torch.cat([facts[rows].repeat_interleave(2, 0), facts])
    parts = sheets.split(list(QUESTIONS.values()), -1)
    losses = [functional.cross_entropy(q, truth[:, i], label_smoothing=SMOOTHING) for i, q in enumerate(parts)]
    return torch.stack(losses).mean()
