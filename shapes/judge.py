"""Caption accuracy: does an image show what its caption says?

Measured as GenEval does (Ghosh et al. 2023, arXiv:2310.11513), with a detector; here nothing is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vqcompress.metrics import wilson_interval
from vqcompress.shapes.caption_parser import CaptionContent, CaptionError, parse_caption
from vqcompress.shapes.detector import Detection, detect
from vqcompress.shapes.scenes import Scene, caption

ASPECTS = ("background", "count", "shape", "color", "size", "binding", "relation")


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


def judge(image, text: str | Scene) -> dict[str, bool]:
    """Verdicts on one image (uint8 or 0..1 float [32, 32, 3], or PIL): every aspect, and ``all``.

    An aspect that the caption does not mention (size, relation) passes. Raises `CaptionError` for a foreign caption.
    """
    content = parse_caption(caption(text) if isinstance(text, Scene) else text)
    background, found = detect(as_pixels(image))
    verdict = {"background": background == content.background, **_judge_objects(found, content)}
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
    """Rates over images and captions; size and relation count only the captions that mention one."""
    verdicts = [judge(image, text) for image, text in zip(images, texts, strict=True)]
    contents = [parse_caption(text) for text in texts]
    counted = {
        "size": [content.size is not None for content in contents],
        "relation": [content.relation is not None for content in contents],
    }
    return {key: _rate(verdicts, key, counted.get(key)) for key in (*ASPECTS, "all")}


def as_pixels(image) -> np.ndarray:
    """uint8 [32, 32, 3] from uint8, 0..1 floats or a PIL image."""
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(np.clip(pixels.astype(np.float32), 0.0, 1.0) * 255).astype(np.uint8)


def _judge_objects(found: list[Detection], content: CaptionContent) -> dict[str, bool]:
    pairs = sorted((each.color, each.shape) for each in found)
    return {
        "count": len(found) == len(content.objects),
        "shape": sorted(shape for _, shape in pairs) == sorted(shape for _, shape in content.objects),
        "color": sorted(color for color, _ in pairs) == sorted(color for color, _ in content.objects),
        "size": content.size is None or all(each.size == content.size for each in found),
        "binding": pairs == sorted(content.objects),
        "relation": content.relation is None or _relation_holds(found, content),
    }


def _relation_holds(found: list[Detection], content: CaptionContent) -> bool:
    """Whether both named objects were found, and the larger of their offsets points as the caption says."""
    places = {(each.color, each.shape): (each.x, each.y) for each in found}
    if any(name not in places for name in content.objects):
        return False
    (ax, ay), (bx, by) = (places[name] for name in content.objects)
    dx, dy = bx - ax, by - ay
    if abs(dx) > abs(dy):
        return content.relation == ("to the left of" if dx > 0 else "to the right of")
    return content.relation == ("above" if dy > 0 else "below")


def _rate(verdicts: list[dict[str, bool]], key: str, counted: list[bool] | None) -> Rate:
    passed = [v[key] for i, v in enumerate(verdicts) if counted is None or counted[i]]
    return Rate(sum(passed), len(passed))
