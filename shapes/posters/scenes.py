"""Posters: what they hold, how they are sampled, and their captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vqcompress.shapes.posters.glyphs import LETTERS
from vqcompress.shapes.render import INSIDE
from vqcompress.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    READING_ORDER,
    RELATIONS,
    SHAPES,
    TRIES,
    apart,
    drawn_for,
    first_distinct,
    pick,
    relation_holds,
    with_article,
)

TEXTURES = ("plain", "striped", "checkered", "dotted")  # a caption does not name the first
IN_FRONT = "in front of"
RADII = {"small": 8.5, "large": 11.5}
SIZE = 64  # pixels a side
WIDTH, HEIGHT = 64.0, 52.0  # pixels in which objects lie; the label is below
KINDS = {"single": 0.25, "pair": 0.15, "relation": 0.40, "overlap": 0.20}
LABELLED = 0.3  # share of posters
GAP = 2.0  # pixels between the boxes of two objects that do not overlap
SOLID = ("circle", "square", "triangle", "diamond")
"""Shapes wide enough for a texture, and without holes, so that they may lie in front of another."""
OVERLAP = (1.0, 1.3)  # distance of overlapping objects in radii: most of the one behind stays visible
OVERLAP_ACROSS = 0.3  # of it, at most, across its main axis
MIN_COMMON, MIN_SEEN = 20, 0.6  # pixels that both objects of an overlap cover, and share of the one behind that is seen


@dataclass(frozen=True)
class Item:
    """One object: names of shape, colour, texture and size, and its centre in pixels."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Half the side of the object's box, in pixels."""
        return RADII[self.size]

    def mask(self) -> np.ndarray:
        """bool [64, 64]: pixels whose centre lies in the object."""
        place = np.arange(SIZE, dtype=np.float32) + 0.5
        return INSIDE[self.shape](((place - self.x) / self.radius)[None, :], ((place - self.y) / self.radius)[:, None])


@dataclass(frozen=True)
class Poster:
    """A background, one or two objects (the first lies in front), what the caption mentions of them, two letters or
    none."""

    background: str
    items: tuple[Item, ...]
    kind: str
    relation: str | None = None
    names_size: bool = False
    label: str = ""


def caption(poster: Poster) -> str:
    """The sentence that describes `poster`."""
    label = f" labelled {' '.join(poster.label)}" if poster.label else ""
    return f"{_subject(poster)} on a {poster.background} background{label}"


def sample_poster(rng: np.random.Generator, split: str | None = None) -> Poster:
    """Sample one poster; with ``split``, one whose caption belongs to it."""
    return drawn_for(split, lambda: _sample(rng), caption)


def sample_posters(count: int, seed: int, split: str | None = None) -> Iterator[Poster]:
    """``count`` posters from one seed."""
    rng = np.random.default_rng(seed)
    return (sample_poster(rng, split) for _ in range(count))


def sample_captions(count: int, seed: int, split: str) -> list[str]:
    """``count`` distinct captions of one split, in the order in which they were sampled."""
    rng = np.random.default_rng(seed)
    return first_distinct(count, lambda: caption(sample_poster(rng, split)))


def held_out_captions(count: int = 200, seed: int = 2024) -> list[str]:
    """Captions for the final evaluation; none is in the training set."""
    return sample_captions(count, seed, "held-out")


def monitor_captions(count: int = 96, seed: int = 7) -> list[str]:
    """Captions for monitoring during training; none is in the training set."""
    return sample_captions(count, seed, "monitor")


def calibration_captions(count: int = 640, seed: int = 11) -> list[str]:
    """Captions of `calib_prompts/posters.txt`; disjoint from both evaluation sets."""
    return sample_captions(count, seed, "calibration")


def _subject(poster: Poster) -> str:
    first = poster.items[0]
    if poster.kind == "single":
        return with_article(f"{first.size} {_words(first)}" if poster.names_size else _words(first))
    joint = poster.relation or "and"
    return f"{with_article(_words(first))} {joint} {with_article(_words(poster.items[1]))}"


def _words(item: Item) -> str:
    texture = "" if item.texture == TEXTURES[0] else f"{item.texture} "
    return f"{texture}{item.color} {item.shape}"


def _sample(rng: np.random.Generator) -> Poster:
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    background = pick(rng, BACKGROUNDS)
    label = pick(rng, LETTERS) + pick(rng, LETTERS) if rng.random() < LABELLED else ""
    if kind == "single":
        size = pick(rng, RADII)
        (centre,) = _place(rng, 1, RADII[size], None)
        item = Item(*_looks(rng), size, *centre)
        return Poster(background, (item,), kind, names_size=bool(rng.random() < 0.5), label=label)
    relation = {"pair": None, "relation": pick(rng, RELATIONS), "overlap": IN_FRONT}[kind]
    return Poster(background, _two_objects(rng, relation), kind, relation, label=label)


def _looks(rng: np.random.Generator, shapes: tuple[str, ...] = SHAPES) -> tuple[str, str, str]:
    shape = pick(rng, shapes)
    texture = pick(rng, TEXTURES) if shape in SOLID else TEXTURES[0]
    return shape, pick(rng, COLORS), texture


def _two_objects(rng: np.random.Generator, relation: str | None) -> tuple[Item, ...]:
    """Two objects of one size that differ in shape or colour, and in colour where they overlap."""
    overlap = relation == IN_FRONT
    size = pick(rng, RADII)
    while True:
        first, second = _looks(rng, SOLID if overlap else SHAPES), _looks(rng)
        if first[1] == second[1] and (overlap or first[0] == second[0]):
            continue
        if overlap:
            centres = _overlapping(rng, RADII[size])
        else:
            centres = _place(rng, 2, RADII[size], relation or pick(rng, READING_ORDER))
        items = tuple(Item(*looks, size, *xy) for looks, xy in zip((first, second), centres, strict=True))
        if not overlap or _is_seen_behind(*items):
            return items


def _is_seen_behind(front: Item, behind: Item) -> bool:
    """Whether two objects overlap, and enough is seen of the one behind."""
    mask = behind.mask()
    common = (front.mask() & mask).sum()
    return bool(common >= MIN_COMMON and common <= (1 - MIN_SEEN) * mask.sum())


def _place(rng: np.random.Generator, count: int, radius: float, relation: str | None) -> list[tuple[float, float]]:
    """Centres whose boxes lie above the label, do not touch, and satisfy the relation."""
    while True:
        tries = _centres(rng, radius, (TRIES, count))
        good = apart(tries, 2 * radius + GAP)
        if relation is not None:
            good &= relation_holds(tries[:, 1] - tries[:, 0], relation)
        if good.any():
            return [(float(x), float(y)) for x, y in tries[good.argmax()]]


def _overlapping(rng: np.random.Generator, radius: float) -> list[tuple[float, float]]:
    """Centres of an object and of one behind it."""
    reach = radius + 1.0
    while True:
        front = _centres(rng, radius, (TRIES,))
        along = rng.uniform(*OVERLAP, TRIES) * rng.choice([-1.0, 1.0], TRIES)
        offset = np.stack([along, along * rng.uniform(-OVERLAP_ACROSS, OVERLAP_ACROSS, TRIES)], 1) * radius
        behind = front + np.where(rng.random((TRIES, 1)) < 0.5, offset, offset[:, ::-1])
        good = ((behind >= reach) & (behind <= np.array([WIDTH, HEIGHT]) - reach)).all(1)
        if good.any():
            index = good.argmax()
            return [(float(x), float(y)) for x, y in (front[index], behind[index])]


def _centres(rng: np.random.Generator, radius: float, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform centres [*shape, 2] whose boxes lie one pixel inside."""
    reach = radius + 1.0
    return rng.uniform(reach, np.array([WIDTH, HEIGHT]) - reach, (*shape, 2))
