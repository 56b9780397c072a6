"""Training data: scenes drawn, rendered and coded once, then held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vqcompress.shapes.autoencoder import PatchCode
from vqcompress.shapes.layout import layout
from vqcompress.shapes.lessons import KINDS, kind_of
from vqcompress.shapes.render import render
from vqcompress.shapes.scenes import Scene, caption, sample_scenes

CHUNK = 4096


@dataclass(frozen=True)
class LatentSet:
    """latents float16 [n, 8, 8, 8]; tokens int16 [n, t]; layouts uint8 [n, 8, 8], see `layout`; kinds int64 [n] into KINDS;
    empty int64 [t], the empty caption."""

    latents: torch.Tensor
    tokens: torch.Tensor
    layouts: torch.Tensor
    kinds: torch.Tensor
    empty: torch.Tensor

    def batch(
        self, size: int, drop: float, generator: torch.Generator, shares: tuple[float, ...] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random latents float32 [size, 8, 8, 8], tokens int64 and layouts int64; a share `drop` of captions is emptied.

        `shares` gives each kind of caption its part of the batch, in the order of KINDS.
        """
        index = self._index(size, shares, generator)
        dropped = torch.rand(size, 1, generator=generator) < drop
        tokens = torch.where(dropped, self.empty, self.tokens[index].long())
        return self.latents[index].float(), tokens, self.layouts[index].long()

    def _index(self, size: int, shares: tuple[float, ...] | None, generator: torch.Generator) -> torch.Tensor:
        if shares is None:
            return torch.randint(len(self.latents), (size,), generator=generator)
        odds = torch.tensor(shares) / torch.bincount(self.kinds, minlength=len(KINDS)).clamp(min=1)
        return torch.multinomial(odds[self.kinds], size, replacement=True, generator=generator)


def training_images(count: int, seed: int) -> np.ndarray:
    """Rendered training scenes: uint8 [count, 32, 32, 3]."""
    return np.stack([render(scene) for scene in sample_scenes(count, seed, "train")])


def training_captions(count: int, seed: int) -> list[str]:
    """Captions of training scenes, repeats included."""
    return [caption(scene) for scene in sample_scenes(count, seed, "train")]


def build_latent_set(count: int, seed: int, code: PatchCode, tokenizer) -> LatentSet:
    """Draw `count` training scenes and code pictures and captions."""
    latents, tokens, layouts, kinds = [], [], [], []
    for scenes in _chunks(sample_scenes(count, seed, "train")):
        images = np.stack([render(scene) for scene in scenes])
        latents.append(torch.from_numpy(code.encode(images)).half())
        texts = [caption(scene) for scene in scenes]
        tokens.append(tokenize(tokenizer, texts).short())
        layouts.append(torch.from_numpy(np.stack([layout(scene) for scene in scenes])))
        kinds += [kind_of(text) for text in texts]
    empty = tokenize(tokenizer, [""])[0]
    return LatentSet(torch.cat(latents), torch.cat(tokens), torch.cat(layouts), torch.tensor(kinds), empty)


def tokenize(tokenizer, texts: list[str]) -> torch.Tensor:
    """int64 [n, MAX_TOKENS], padded as the pipeline pads."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _chunks(scenes: Iterator[Scene]) -> Iterator[list[Scene]]:
    chunk: list[Scene] = []
    for scene in scenes:
        chunk.append(scene)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
