"""Scenes: what they hold, how they are sampled, and their captions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "bar")
COLORS = {
    "red": (214, 32, 38),
    "orange": (250, 140, 16),
    "yellow": (248, 222, 40),
    "green": (28, 158, 58),
    "cyan": (30, 200, 214),
    "blue": (36, 64, 208),
    "purple": (124, 36, 160),
    "pink": (250, 130, 190),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (128, 128, 128), "black": (0, 0, 0)}
RADII = {"small": 5.0, "large": 6.6}
RELATIONS = ("above", "below", "to the left of", "to the right of")
COUNT_WORDS = {2: "two", 3: "three"}
KINDS = {"single": 0.15, "count": 0.20, "relation": 0.45, "pair": 0.20}
SPLITS = ("held-out", "monitor", "calibration")  # buckets 0, 1, 2 of BUCKETS; every other bucket trains
BUCKETS = 12
CANVAS = 32.0
TRIES = 64  # placements sampled at once; the first valid one is taken
GAP = 2.0  # pixels between the boxes of two objects, so that blur cannot join them
READING_ORDER = ("above", "to the left of")  # positions of objects that a caption only lists
TRIANGLE = np.array([(16.0, 9.7), (9.7, 22.3), (22.3, 22.3)])  # three objects: one above two, or upside down
TRIANGLE_JITTER = 2.2  # pixels, in x and in y


S = TypeVar("S")


@dataclass(frozen=True)
class Item:
    """One object: names of shape, colour and size, and its centre in pixels."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Half the side of the object's box, in pixels."""
        return RADII[self.size]


@dataclass(frozen=True)
class Scene:
    """A background, one to three objects, and what the caption mentions of them."""

    background: str
    items: tuple[Item, ...]
    kind: str
    relation: str | None = None
    names_size: bool = False


def caption(scene: Scene) -> str:
    """The sentence that describes `scene`."""
    return f"{_subject(scene)} on a {scene.background} background"


def split_of(text: str) -> str:
    """The split of a caption, by a checksum of its text."""
    bucket = zlib.crc32(text.encode()) % BUCKETS
    return SPLITS[bucket] if bucket < len(SPLITS) else "train"


def sample_scene(rng: np.random.Generator, split: str | None = None) -> Scene:
    """Sample one scene; with ``split``, one whose caption belongs to it."""
    return drawn_for(split, lambda: _sample(rng), caption)


def sample_scenes(count: int, seed: int, split: str | None = None) -> Iterator[Scene]:
    """``count`` scenes from one seed."""
    rng = np.random.default_rng(seed)
    return (sample_scene(rng, split) for _ in range(count))


def sample_single_objects(count: int, seed: int) -> Iterator[Scene]:
    """``count`` scenes of one object whose caption does not name its size, of every split."""
    rng = np.random.default_rng(seed)
    return (Scene(pick(rng, BACKGROUNDS), (_lone_item(rng),), "single") for _ in range(count))


def sample_captions(count: int, seed: int, split: str) -> list[str]:
    """``count`` distinct captions of one split, in the order in which they were sampled."""
    rng = np.random.default_rng(seed)
    return first_distinct(count, lambda: caption(sample_scene(rng, split)))


def drawn_for(split: str | None, draw: Callable[[], S], describe: Callable[[S], str]) -> S:
    """The first that ``draw()`` gives whose caption, ``describe(it)``, belongs to ``split``; any without one."""
    while True:
        scene = draw()
        if split is None or split_of(describe(scene)) == split:
            return scene


def first_distinct(count: int, draw: Callable[[], str]) -> list[str]:
    """The first ``count`` different texts that ``draw()`` gives."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def held_out_captions(count: int = 200, seed: int = 2024) -> list[str]:
    """Captions for the final evaluation; none is in the training set."""
    return sample_captions(count, seed, "held-out")


def monitor_captions(count: int = 96, seed: int = 7) -> list[str]:
    """Captions for monitoring during training; none is in the training set."""
    return sample_captions(count, seed, "monitor")


def calibration_captions(count: int = 640, seed: int = 11) -> list[str]:
    """Captions of `calib_prompts/shapes.txt`; disjoint from both evaluation sets."""
    return sample_captions(count, seed, "calibration")


def with_article(words: str) -> str:
    """`orange star` -> `an orange star`."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _subject(scene: Scene) -> str:
    first = scene.items[0]
    words = f"{first.color} {first.shape}"
    if scene.kind == "count":
        return f"{COUNT_WORDS[len(scene.items)]} {words}{'es' if first.shape == 'cross' else 's'}"
    if scene.kind == "single":
        return with_article(f"{first.size} {words}" if scene.names_size else words)
    second = scene.items[1]
    joint = scene.relation or "and"
    return f"{with_article(words)} {joint} {with_article(f'{second.color} {second.shape}')}"


def _sample(rng: np.random.Generator) -> Scene:
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    background = pick(rng, BACKGROUNDS)
    if kind == "single":
        return Scene(background, (_lone_item(rng),), kind, names_size=bool(rng.random() < 0.6))
    if kind == "count":
        return Scene(background, _same_objects(rng), kind)
    relation = pick(rng, RELATIONS) if kind == "relation" else None
    return Scene(background, _different_pair(rng, relation), kind, relation)


def pick(rng: np.random.Generator, names) -> str:
    return list(names)[int(rng.integers(len(names)))]


def _lone_item(rng: np.random.Generator) -> Item:
    size = pick(rng, RADII)
    ((x, y),) = _place(rng, 1, RADII[size], None)
    return Item(pick(rng, SHAPES), pick(rng, COLORS), size, x, y)


def _same_objects(rng: np.random.Generator) -> tuple[Item, ...]:
    count = int(rng.integers(2, 4))
    size = "small" if count == 3 else pick(rng, RADII)
    shape, color = pick(rng, SHAPES), pick(rng, COLORS)
    centres = _place_three(rng) if count == 3 else _place(rng, 2, RADII[size], pick(rng, READING_ORDER))
    return tuple(Item(shape, color, size, x, y) for x, y in centres)


def _different_pair(rng: np.random.Generator, relation: str | None) -> tuple[Item, ...]:
    names = [(pick(rng, SHAPES), pick(rng, COLORS)) for _ in range(2)]
    while names[0] == names[1]:
        names[1] = (pick(rng, SHAPES), pick(rng, COLORS))
    size = pick(rng, RADII)
    centres = _place(rng, 2, RADII[size], relation or pick(rng, READING_ORDER))
    return tuple(Item(s, c, size, x, y) for (s, c), (x, y) in zip(names, centres, strict=True))


def _place(rng: np.random.Generator, count: int, radius: float, relation: str | None) -> list[tuple[float, float]]:
    """Centres whose boxes lie on the canvas, do not touch, and satisfy the relation."""
    reach = radius + 1.0
    while True:
        tries = rng.uniform(reach, CANVAS - reach, (TRIES, count, 2))
        good = apart(tries, 2 * radius + GAP)
        if relation is not None:
            good &= relation_holds(tries[:, 1] - tries[:, 0], relation)
        if good.any():
            return [(float(x), float(y)) for x, y in tries[good.argmax()]]


def _place_three(rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of three small objects in a triangle, with jitter."""
    corners = TRIANGLE if rng.random() < 0.5 else np.array([0.0, CANVAS]) + TRIANGLE * [1.0, -1.0]
    while True:
        tries = corners + rng.uniform(-TRIANGLE_JITTER, TRIANGLE_JITTER, (TRIES, *corners.shape))
        good = apart(tries, 2 * RADII["small"] + GAP)
        if good.any():
            return [(float(x), float(y)) for x, y in tries[good.argmax()]]


def apart(xy: np.ndarray, clearance: float) -> np.ndarray:
    """bool [tries]: whether every two boxes of [tries, count, 2] are ``clearance`` apart."""
    good = np.ones(len(xy), bool)
    for i in range(xy.shape[1]):
        for j in range(i):
            good &= np.abs(xy[:, i] - xy[:, j]).max(1) >= clearance
    return good


def relation_holds(offset: np.ndarray, relation: str) -> np.ndarray:
    """bool [tries]: whether the offset [tries, 2] along the relation's axis is at least twice the one across."""
    dx, dy = offset.T
    along = {"above": dy, "below": -dy, "to the left of": dx, "to the right of": -dx}[relation]
    across = dx if relation in ("above", "below") else dy
    return along >= 2 * np.abs(across)
