"""Training data: scenes are sampled, rendered and encoded once, then held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.shapes.classes import CLASSES
from vqcompress.shapes.render import render
from vqcompress.shapes.scenes import caption, sample_single_objects
from vqcompress.shapes.train.autoencoder import PatchCode
from vqcompress.shapes.train.curriculum import KINDS, kind_of
from vqcompress.shapes.train.layout import layout
from vqcompress.shapes.train.world import SHAPES_WORLD, World

CHUNK = 4096  # scenes rendered at once


@dataclass(frozen=True)
class CaptionedLatents:
    """Encoded scenes with captions.

    latents float16 [n, channels, h, w]; tokens int16 [n, t]; layouts uint8 [n, ..., 8, 8], see `layout`; kinds int64
    [n] into KINDS; empty int64 [t], the empty caption.
    """

    latents: Tensor
    tokens: Tensor
    layouts: Tensor
    kinds: Tensor
    empty: Tensor

    def batch(
        self, size: int, drop: float, generator: torch.Generator, shares: tuple[float, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents float32 [size, channels, h, w], tokens int64 [size, t] and layouts int64 [size, ..., 8, 8].

        A share ``drop`` of the captions is replaced by the empty one. ``shares`` gives each kind of
        caption its part of the batch, in the order of KINDS.
        """
        index = self._index(size, shares, generator)
        dropped = torch.rand(size, 1, generator=generator) < drop
        tokens = torch.where(dropped, self.empty, self.tokens[index].long())
        return self.latents[index].float(), tokens, self.layouts[index].long()

    def _index(self, size: int, shares: tuple[float, ...] | None, generator: torch.Generator) -> Tensor:
        if shares is None:
            return torch.randint(len(self.latents), (size,), generator=generator)
        odds = torch.tensor(shares) / torch.bincount(self.kinds, minlength=len(KINDS)).clamp(min=1)
        return torch.multinomial(odds[self.kinds], size, replacement=True, generator=generator)


@dataclass(frozen=True)
class LabeledLatents:
    """Encoded scenes with class labels.

    latents float16 [n, 8, 8, 8]; labels int64 [n] into CLASSES; layouts uint8 [n, 8, 8], see `layout`.
    """

    latents: Tensor
    labels: Tensor
    layouts: Tensor

    def batch(self, size: int, drop: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents float32 [size, 8, 8, 8], labels int64 [size] and layouts int64 [size, 8, 8].

        A share ``drop`` of the labels is replaced by the null label.
        """
        index = torch.randint(len(self.latents), (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < drop
        labels = torch.where(dropped, len(CLASSES), self.labels[index])
        return self.latents[index].float(), labels, self.layouts[index].long()


def training_images(count: int, seed: int, world: World = SHAPES_WORLD) -> np.ndarray:
    """Rendered training scenes: uint8 [count, side, side, 3]."""
    return np.stack([world.render(scene) for scene in world.sample(count, seed, "train")])


def training_captions(count: int, seed: int, world: World = SHAPES_WORLD) -> list[str]:
    """Captions of training scenes, repeats included."""
    return [world.caption(scene) for scene in world.sample(count, seed, "train")]


def build_captioned_latents(
    count: int, seed: int, code: PatchCode, tokenizer, world: World = SHAPES_WORLD
) -> CaptionedLatents:
    """Sample ``count`` training scenes; encode their images and tokenize their captions."""
    latents, tokens, layouts, kinds = [], [], [], []
    for scenes in _chunks(world.sample(count, seed, "train")):
        latents.append(_encode(map(world.render, scenes), code))
        texts = [world.caption(scene) for scene in scenes]
        tokens.append(tokenize(tokenizer, texts).short())
        layouts.append(_stacked(map(world.layout, scenes)))
        kinds += [kind_of(text) for text in texts]
    empty = tokenize(tokenizer, [""])[0]
    return CaptionedLatents(torch.cat(latents), torch.cat(tokens), torch.cat(layouts), torch.tensor(kinds), empty)


def build_labeled_latents(count: int, seed: int, code: PatchCode) -> LabeledLatents:
    """Sample ``count`` scenes of one object, of every class and both sizes, and encode their images."""
    numbers = {text: number for number, text in enumerate(CLASSES)}
    latents, labels, layouts = [], [], []
    for scenes in _chunks(sample_single_objects(count, seed)):
        latents.append(_encode(map(render, scenes), code))
        layouts.append(_stacked(map(layout, scenes)))
        labels += [numbers[caption(scene)] for scene in scenes]
    return LabeledLatents(torch.cat(latents), torch.tensor(labels), torch.cat(layouts))


def tokenize(tokenizer, texts: list[str]) -> Tensor:
    """int64 [n, the tokenizer's length], padded as the pipeline pads."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _encode(images: Iterable[np.ndarray], code: PatchCode) -> Tensor:
    return torch.from_numpy(code.encode(np.stack(list(images)))).half()


def _stacked(layouts: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(list(layouts)))


def _chunks(scenes: Iterator[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for scene in scenes:
        chunk.append(scene)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
