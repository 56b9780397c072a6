"""A CLIP tokenizer learned from captions; its byte-pair merges end in whole words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

MAX_TOKENS = 18
START, END = "<|startoftext|>", "<|endoftext|>"


def learn_vocabulary(texts: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in CLIP's order: bytes, bytes that end a word, merges, start and end mark."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = _learn_merges(texts)
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [a + b for a, b in merges] + [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def build_tokenizer(texts: Iterable[str], max_tokens: int = MAX_TOKENS):
    """A `CLIPTokenizer` that pads to ``max_tokens`` with the end mark."""
    from transformers import CLIPTokenizer

    vocabulary, merges = learn_vocabulary(texts)
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=max_tokens,
    )  # fmt: skip


def write_slow_files(tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json: readers of CLIP folders expect them."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"], ensure_ascii=False))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")


def _learn_merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Merge the most frequent pair (ties: alphabetical) until every word is one token."""
    words = sorted({word for text in texts for word in text.split()})
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while pair := _most_frequent_pair(pieces.values()):
        merges.append(pair)
        pieces = {word: _join(parts, pair) for word, parts in pieces.items()}
    return merges


def _most_frequent_pair(all_parts) -> tuple[str, str] | None:
    counts: dict[tuple[str, str], int] = {}
    for parts in all_parts:
        for pair in pairwise(parts):
            counts[pair] = counts.get(pair, 0) + 1
    return min(counts, key=lambda pair: (-counts[pair], pair)) if counts else None


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
