"""The part of the world that `shapes-moe` draws: one object, its class the background, colour and shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vqcompress.shapes.autoencoder import PatchCode
from vqcompress.shapes.dataset import CHUNK
from vqcompress.shapes.layout import layout
from vqcompress.shapes.render import render
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, caption, sample_singles, with_article

CLASSES = tuple(
    f"{with_article(f'{color} {shape}')} on a {background} background"
    for background in BACKGROUNDS
    for color in COLORS
    for shape in SHAPES
)
"""The caption of every class; its place is the class's number."""


@dataclass(frozen=True)
class LabelledSet:
    """latents float16 [n, 8, 8, 8]; labels int64 [n] into CLASSES; layouts uint8 [n, 8, 8], see `layout`."""

    latents: torch.Tensor
    labels: torch.Tensor
    layouts: torch.Tensor

    def batch(
        self, size: int, drop: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random latents float32 [size, 8, 8, 8], labels int64 [size], a share `drop` of them the null label, and layouts
        int64 [size, 8, 8]."""
        index = torch.randint(len(self.latents), (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < drop
        labels = torch.where(dropped, len(CLASSES), self.labels[index])
        return self.latents[index].float(), labels, self.layouts[index].long()


def build_labelled_set(count: int, seed: int, code: PatchCode) -> LabelledSet:
    """Draw `count` scenes of one object, of every class and both sizes."""
    numbers = {text: number for number, text in enumerate(CLASSES)}
    latents, labels, layouts = [], [], []
    for scenes in _chunks(sample_singles(count, seed), count):
        latents.append(torch.from_numpy(code.encode(np.stack([render(scene) for scene in scenes]))).half())
        layouts.append(torch.from_numpy(np.stack([layout(scene) for scene in scenes])))
        labels += [numbers[caption(scene)] for scene in scenes]
    return LabelledSet(torch.cat(latents), torch.tensor(labels), torch.cat(layouts))


def class_captions(count: int = len(CLASSES)) -> list[str]:
    """`count` classes in a fixed mixed order, all of them before any returns."""
    order = np.random.default_rng(0).permutation(len(CLASSES))
    return [CLASSES[order[i % len(CLASSES)]] for i in range(count)]


def _chunks(scenes: Iterator[Scene], count: int) -> Iterator[list[Scene]]:
    for start in range(0, count, CHUNK):
        yield [next(scenes) for _ in range(min(CHUNK, count - start))]
