"""How often do images show what their captions say? Shares with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TypeVar

from vqcompress.errors import VQCompressError

Answer = TypeVar("Answer")

OVERALL = "all"
"""The question that an image passes if it passes all others."""


def wilson_interval(passed: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share ``passed / total``, both ends in 0..1 (Wilson 1927, JASA 22, 209-212).

    Unlike ``p ± z·sqrt(p(1-p)/n)`` it stays inside 0..1 and does not collapse to a point at 0 or ``total``.
    """
    if not 0 <= passed <= total or total < 1:
        raise VQCompressError(
            f"no share of {passed} out of {total}: give at least one image, and no more hits than images"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, shrink = passed / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    reach = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def caption_accuracy(answers: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Question -> ``share``, ``low``, ``high`` (95 % Wilson interval), ``count``; ``answers`` has a mapping per image.

    Images without an answer to a question are not counted for it.
    """
    questions = dict.fromkeys(question for image in answers for question in image)
    return {question: _share([image[question] for image in answers if question in image]) for question in questions}


def overall(answers: Mapping[str, Answer]) -> Answer | None:
    """What stands at the question ``all``, else at the first: an image's answer, or a share. None without questions."""
    return answers[OVERALL] if OVERALL in answers else next(iter(answers.values()), None)


def _share(answers: Sequence[bool]) -> dict[str, float]:
    passed, total = sum(map(bool, answers)), len(answers)
    low, high = wilson_interval(passed, total)
    return {"share": passed / total, "low": low, "high": high, "count": float(total)}
