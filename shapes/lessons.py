"""What a training batch is made of as the run goes on: which relations, and how noisy.

Trained on all four relations alike, the model learns the axis at once ("above" and "below" are both vertical) and
then sits on a plateau: which of the two objects comes first in the caption tells nothing until the relation's word
is read too, and that word tells nothing until the order is. Lopsided lessons break the tie: with only "above" and
"left" the first-named object always goes up or left, which is learned within 500 steps; a minority of "below" and
"right" then teaches what the word is for.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("other", "above", "below", "left", "right")  # of captions, by the word that tells the relation
NOISY_FROM = 600  # timesteps from here on show almost only noise: what goes where is decided there


@dataclass(frozen=True)
class Lesson:
    """Until this share of the run: batch shares in the order of KINDS (None: as drawn), extra odds of noisy steps."""

    until: float
    shares: tuple[float, ...] | None = None
    noisy: float = 0.0


LESSONS = (
    Lesson(0.30),
    Lesson(0.42, (0.4, 0.25, 0.0, 0.35, 0.0), noisy=0.5),
    Lesson(0.50, (0.4, 0.21, 0.09, 0.21, 0.09), noisy=0.5),
    Lesson(0.58, (0.36, 0.15, 0.17, 0.15, 0.17), noisy=0.25),
    Lesson(1.00),
)


def lesson_at(progress: float, lessons: tuple[Lesson, ...] = LESSONS) -> Lesson:
    """The lesson for a run's progress in 0..1."""
    return next((lesson for lesson in lessons if progress < lesson.until), lessons[-1])


def kind_of(text: str) -> int:
    """Index into KINDS of a caption."""
    words = text.split()
    return next((i for i, kind in enumerate(KINDS) if kind in words), 0)
