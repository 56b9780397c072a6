"""Does a picture show what its caption says? Judged by measuring, GenEval-style; no part is learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vqcompress.metrics import wilson_interval
from vqcompress.shapes.claims import Claim, read_claim
from vqcompress.shapes.scenes import Scene, caption
from vqcompress.shapes.sight import Seen, look

ASPECTS = ("background", "count", "shape", "color", "size", "binding", "relation")


@dataclass(frozen=True)
class Rate:
    """Share of captions that passed, with its 95 % Wilson interval; rates in 0..1."""

    passed: int
    total: int

    @property
    def rate(self) -> float:
        """passed / total (1 where nothing was asked)."""
        return self.passed / self.total if self.total else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval; (0, 1) where nothing was asked."""
        return wilson_interval(self.passed, self.total) if self.total else (0.0, 1.0)


def judge(image, text: str | Scene) -> dict[str, bool]:
    """Verdicts on one picture (uint8 or 0..1 float [32, 32, 3], or PIL): every aspect, and `all`.

    An aspect that the caption does not speak of (size, relation) passes.
    """
    claim = read_claim(caption(text) if isinstance(text, Scene) else text)
    background, objects = look(as_pixels(image))
    verdict = {"background": background == claim.background, **_judge_objects(objects, claim)}
    return {**verdict, "all": all(verdict.values())}


def score(images: Iterable, texts: Sequence[str]) -> dict[str, Rate]:
    """Rates over pictures and captions; size and relation count only the captions that claim one."""
    verdicts = [judge(image, text) for image, text in zip(images, texts, strict=True)]
    claims = [read_claim(text) for text in texts]
    asked = {
        "size": [claim.size is not None for claim in claims],
        "relation": [claim.relation is not None for claim in claims],
    }
    return {key: _rate(verdicts, key, asked.get(key)) for key in (*ASPECTS, "all")}


def as_pixels(image) -> np.ndarray:
    """uint8 [32, 32, 3] from uint8, 0..1 floats or a PIL image."""
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(np.clip(pixels.astype(np.float32), 0.0, 1.0) * 255).astype(np.uint8)


def _judge_objects(objects: list[Seen], claim: Claim) -> dict[str, bool]:
    looks = sorted((seen.color, seen.shape) for seen in objects)
    return {
        "count": len(objects) == len(claim.looks),
        "shape": sorted(shape for _, shape in looks) == sorted(shape for _, shape in claim.looks),
        "color": sorted(color for color, _ in looks) == sorted(color for color, _ in claim.looks),
        "size": claim.size is None or all(seen.size == claim.size for seen in objects),
        "binding": looks == sorted(claim.looks),
        "relation": claim.relation is None or _related(objects, claim),
    }


def _related(objects: list[Seen], claim: Claim) -> bool:
    """The two named objects are both there, and the larger of their offsets points as claimed."""
    places = {(seen.color, seen.shape): (seen.x, seen.y) for seen in objects}
    if any(name not in places for name in claim.looks):
        return False
    (ax, ay), (bx, by) = (places[name] for name in claim.looks)
    dx, dy = bx - ax, by - ay
    if abs(dx) > abs(dy):
        return claim.relation == ("to the left of" if dx > 0 else "to the right of")
    return claim.relation == ("above" if dy > 0 else "below")


def _rate(verdicts: list[dict[str, bool]], key: str, asked: list[bool] | None) -> Rate:
    counted = [v[key] for i, v in enumerate(verdicts) if asked is None or asked[i]]
    return Rate(sum(counted), len(counted))
