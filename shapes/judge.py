"""Caption accuracy: does an image show what its caption says?

Measured as GenEval does (Ghosh et al. 2023, arXiv:2310.11513), with a detector; here nothing is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vqcompress.metrics import wilson_interval
from vqcompress.shapes.caption_parser import CaptionContent, CaptionError, parse_caption
from vqcompress.shapes.detector import detect
from vqcompress.shapes.posters.detector import detect as detect_poster
from vqcompress.shapes.posters.scenes import IN_FRONT, TEXTURES, Poster
from vqcompress.shapes.posters.scenes import SIZE as POSTER_SIZE
from vqcompress.shapes.posters.scenes import caption as poster_caption
from vqcompress.shapes.scenes import Scene, caption

ASPECTS = ("background", "count", "shape", "color", "size", "texture", "label", "binding", "relation")


@dataclass(frozen=True)
class Rate:
    """Share of captions that passed, in 0..1, with its 95 % Wilson interval."""

    passed: int
    total: int

    @property
    def rate(self) -> float:
        """passed / total (1 where no caption was counted)."""
        return self.passed / self.total if self.total else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval; (0, 1) where no caption was counted."""
        return wilson_interval(self.passed, self.total) if self.total else (0.0, 1.0)


@dataclass(frozen=True)
class _Found:
    """One object that an image shows; ``on_top`` is the share of its overlap with others in which it is seen."""

    name: tuple[str, str]
    texture: str
    size: str
    x: float
    y: float
    on_top: float = 1.0


def judge(image, text: str | Scene | Poster) -> dict[str, bool]:
    """Verdicts on one image (uint8 or 0..1 float [side, side, 3], or PIL): every aspect, and ``all``.

    An image of 64 pixels a side is a poster, one of 32 a scene, which has no textures and no label. An aspect that the
    caption does not mention (size, relation) passes. Raises `CaptionError` for a foreign caption.
    """
    content = parse_caption(_sentence(text))
    background, label, found = _look(as_pixels(image))
    verdict = {
        "background": background == content.background,
        "label": label == content.label,
        **_judge_objects(found, content),
    }
    verdict = {aspect: verdict[aspect] for aspect in ASPECTS}
    return {**verdict, "all": all(verdict.values())}


def judge_for(prompts: Iterable[str]) -> Callable[[object, str], dict[str, bool]] | None:
    """`judge`, or None if one of ``prompts`` is no caption of a shapes scene."""
    try:
        for prompt in prompts:
            parse_caption(prompt)
    except CaptionError:
        return None
    return judge


def score(images: Iterable, texts: Sequence[str]) -> dict[str, Rate]:
    """Rates over images and captions; aspects that few captions mention count only those that do."""
    verdicts = [judge(image, text) for image, text in zip(images, texts, strict=True)]
    contents = [parse_caption(text) for text in texts]
    counted = {
        "size": [content.size is not None for content in contents],
        "texture": [any(name != TEXTURES[0] for name in content.textures) for content in contents],
        "label": [bool(content.label) for content in contents],
        "relation": [content.relation is not None for content in contents],
    }
    return {key: _rate(verdicts, key, counted.get(key)) for key in (*ASPECTS, "all")}


def as_pixels(image) -> np.ndarray:
    """uint8 [side, side, 3] from uint8, 0..1 floats or a PIL image."""
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(np.clip(pixels.astype(np.float32), 0.0, 1.0) * 255).astype(np.uint8)


def _sentence(text: str | Scene | Poster) -> str:
    if isinstance(text, Poster):
        return poster_caption(text)
    return caption(text) if isinstance(text, Scene) else text


def _look(pixels: np.ndarray) -> tuple[str, str, list[_Found]]:
    """Background, label and objects of a scene or a poster."""
    if len(pixels) == POSTER_SIZE:
        poster = detect_poster(pixels)
        return poster.background, poster.label, [
            _Found((d.color, d.shape), d.texture, d.size, d.x, d.y, d.on_top) for d in poster.objects
        ]  # fmt: skip
    background, found = detect(pixels)
    return background, "", [_Found((d.color, d.shape), TEXTURES[0], d.size, d.x, d.y) for d in found]


def _judge_objects(found: list[_Found], content: CaptionContent) -> dict[str, bool]:
    pairs = sorted(each.name for each in found)
    textured = sorted((*each.name, each.texture) for each in found)
    wanted = sorted((*name, texture) for name, texture in zip(content.objects, content.textures, strict=True))
    return {
        "count": len(found) == len(content.objects),
        "shape": sorted(shape for _, shape in pairs) == sorted(shape for _, shape in content.objects),
        "color": sorted(color for color, _ in pairs) == sorted(color for color, _ in content.objects),
        "size": content.size is None or all(each.size == content.size for each in found),
        "texture": sorted(texture for *_, texture in textured) == sorted(content.textures),
        "binding": textured == wanted,
        "relation": content.relation is None or _relation_holds(found, content),
    }


def _relation_holds(found: list[_Found], content: CaptionContent) -> bool:
    """Whether both named objects were found, and the larger of their offsets points as the caption says.

    An object lies in front of another if more of their overlap shows it.
    """
    places = {each.name: each for each in found}
    if any(name not in places for name in content.objects):
        return False
    first, second = (places[name] for name in content.objects)
    dx, dy = second.x - first.x, second.y - first.y
    if content.relation == IN_FRONT:
        return first.on_top > second.on_top
    if abs(dx) > abs(dy):
        return content.relation == ("to the left of" if dx > 0 else "to the right of")
    return content.relation == ("above" if dy > 0 else "below")


def _rate(verdicts: list[dict[str, bool]], key: str, counted: list[bool] | None) -> Rate:
    passed = [v[key] for i, v in enumerate(verdicts) if counted is None or counted[i]]
    return Rate(sum(passed), len(passed))
