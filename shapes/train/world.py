"""What the training knows of a kind of scenes, so that every stage works for the other kind too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqcompress.shapes import scenes
from vqcompress.shapes.posters import scenes as posters
from vqcompress.shapes.posters.render import render as render_poster
from vqcompress.shapes.render import SIZE, render
from vqcompress.shapes.train.autoencoder import CHANNELS
from vqcompress.shapes.train.curriculum import CURRICULUM, POSTER_CURRICULUM, CurriculumStage
from vqcompress.shapes.train.layout import CLASSES, POSTER_CLASSES, layout, poster_layout
from vqcompress.shapes.train.networks import build_poster_unet, build_unet
from vqcompress.shapes.train.text_encoders import ATTRIBUTES, POSTER_ATTRIBUTES, attributes_of, poster_attributes_of
from vqcompress.shapes.train.tokenizer import MAX_TOKENS


@dataclass(frozen=True)
class World:
    """How scenes are sampled, drawn, described and laid out, and the sizes of what is trained on them.

    ``side`` is in pixels, ``channels`` are those of latents. ``sample(count, seed, split)`` gives scenes; ``layout`` of
    one is uint8 [planes, 8, 8] with ``layout_classes`` in each plane; ``attributes_of`` gives a caption's class of each
    of ``attributes``.
    """

    side: int
    channels: int
    max_tokens: int
    sample: Callable[[int, int, str], Iterator[Any]]
    render: Callable[[Any], np.ndarray]
    caption: Callable[[Any], str]
    monitor_captions: Callable[[int], list[str]]
    layout: Callable[[Any], np.ndarray]
    layout_classes: tuple[int, ...]
    attributes: Mapping[str, int]
    attributes_of: Callable[[str], list[int]]
    curriculum: tuple[CurriculumStage, ...]
    build_unet: Callable[[], Any]


SHAPES_WORLD = World(
    SIZE, CHANNELS, MAX_TOKENS, scenes.sample_scenes, render, scenes.caption, scenes.monitor_captions,
    layout, (CLASSES,), ATTRIBUTES, attributes_of, CURRICULUM, build_unet,
)  # fmt: skip
POSTERS_WORLD = World(
    posters.SIZE, 12, 24, posters.sample_posters, render_poster, posters.caption, posters.monitor_captions,
    poster_layout, POSTER_CLASSES, POSTER_ATTRIBUTES, poster_attributes_of, POSTER_CURRICULUM, build_poster_unet,
)  # fmt: skip
