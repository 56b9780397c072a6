"""Set what the transformer's extra caption tokens say at first: what the text encoders were taught to answer.

Left to chance, every extra token starts as a mixture of all answers, and colours wander between objects until training has
taken it apart. The answers are linear in the pooled text (text_training.py), so each token can be given its own by least
squares before the first step.
"""

from __future__ import annotations

import torch

from vqcompress.shapes.dataset import tokenize
from vqcompress.shapes.networks import ANSWER_TOKENS, POOLED_WIDTH
from vqcompress.shapes.text_training import QUESTIONS, answers

TOPICS = (
    ("background", "count", "size"),
    ("color", "shape", "axis", "count", "size"),
    ("second color", "second shape", "axis", "count", "size"),
    ("axis", "count", "background"),
)
RIDGE = 1e-3  # of the pooled text's mean square
SPREAD = 0.7


@torch.no_grad()
def set_answer_tokens(transformer, text_encoder_2, tokenizer, captions: list[str]) -> None:
    """Write the first caption projection's columns of the pooled text; ``captions`` are what the answers are fitted on."""
    pooled = text_encoder_2(tokenize(tokenizer, captions)).text_embeds
    weight, bias = fit_answers(pooled, torch.tensor([answers(text) for text in captions]))
    layer = transformer.caption_projection.linear_1
    columns = layer.weight[:, -ANSWER_TOKENS * POOLED_WIDTH :].unflatten(1, (ANSWER_TOKENS, POOLED_WIDTH))
    for token, topics in enumerate(TOPICS):
        rows = torch.cat([_rows_of(question) for question in topics])
        directions = SPREAD * torch.randn(len(layer.weight), len(rows))
        columns[:, token] = directions @ weight[rows]
        layer.bias += directions @ bias[rows] / ANSWER_TOKENS


def fit_answers(pooled: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares from pooled text [n, p] to one-hot answers of facts int64 [n, questions]: weight [classes, p], bias."""
    truth = torch.cat([one_hot(facts[:, i], size) for i, size in enumerate(QUESTIONS.values())], 1)
    centred = pooled - pooled.mean(0)
    square = centred.T @ centred / len(pooled)
    square += RIDGE * square.trace() / len(square) * torch.eye(len(square))
    weight = torch.linalg.solve(square, centred.T @ (truth - truth.mean(0)) / len(pooled)).T
    return weight, truth.mean(0) - weight @ pooled.mean(0)


def one_hot(facts: torch.Tensor, classes: int) -> torch.Tensor:
    """int64 [n] -> float32 [n, classes]."""
    return torch.nn.functional.one_hot(facts, classes).float()


def _rows_of(question: str) -> torch.Tensor:
    start = 0
    for name, size in QUESTIONS.items():
        if name == question:
            return torch.arange(start, start + size)
        start += size
    raise KeyError(question)
