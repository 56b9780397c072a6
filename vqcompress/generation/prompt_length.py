"""Prompts that are longer than CLIP reads: the rest is left out, and diffusers says so to a logger only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
SHOWN = 40
"""Characters of a prompt that a sentence about it quotes."""


def cut_prompts(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> list[str]:
    """A sentence for each of ``prompts`` that none of the pipeline's text encoders reads to its end."""
    tokenizers = [found for name in TOKENIZERS if (found := getattr(pipeline, name, None)) is not None]
    if not tokenizers or not all(type(tokenizer).__name__.startswith("CLIP") for tokenizer in tokenizers):
        return []
    longest = max(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
    counts = ((prompt, len(_tokens(longest, prompt))) for prompt in dict.fromkeys(prompts))
    limit = longest.model_max_length
    return [
        f"a prompt has {count} tokens and the text encoder reads {limit}; the rest is left out: "
        f"{prompt[:SHOWN]!r}{'…' * (len(prompt) > SHOWN)}"
        for prompt, count in counts
        if count > limit
    ]


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    return tokenizer(prompt, truncation=False, verbose=False).input_ids
