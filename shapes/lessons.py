"""What a training batch is made of as the run goes on: which relations, and how noisy.

Trained on all four relations alike, the model learns the axis at once ("above" and "below" are both vertical) and
then sits on a plateau: which of the two objects comes first in the caption tells nothing until the relation's word
is read too, and that word tells nothing until the order is. Lopsided lessons break the tie: with only "above" and
"left" the first-named object always goes up or left, which is learned within 500 steps; a minority of "below" and
"right" then teaches what the word is for.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("single", "two", "three", "pair", "above", "below", "left", "right")  # of captions, by a word they hold
NOISY_FROM = 600  # timesteps from here on show almost only noise: what goes where is decided there


@dataclass(frozen=True)
class Lesson:
    """Until this share of the run: batch shares in the order of KINDS, and what is added to the min-SNR odds of all noise
    levels (``floor``) and of the noisiest ones (``noisy``)."""

    until: float
    shares: tuple[float, ...]
    floor: float = 0.2
    noisy: float = 0.0


# The world draws "three" and single objects with a size in their caption rarely, and they are learned last.
EVERYDAY = (0.16, 0.08, 0.12, 0.20, 0.11, 0.11, 0.11, 0.11)
LESSONS = (
    # What things look like is learned from little noise, and first: a run that turned to the noisiest levels after an
    # eighth of its steps still drew blobs at the half. Min-SNR alone all but ignores those levels.
    Lesson(0.35, EVERYDAY, floor=0.0),
    Lesson(0.42, (0.10, 0.05, 0.08, 0.17, 0.30, 0.00, 0.30, 0.00), noisy=0.5),
    Lesson(0.48, (0.10, 0.05, 0.08, 0.17, 0.21, 0.09, 0.21, 0.09), noisy=0.5),
    Lesson(0.53, (0.10, 0.05, 0.08, 0.13, 0.15, 0.17, 0.15, 0.17), noisy=0.25),
    Lesson(1.00, EVERYDAY),
)


def lesson_at(progress: float, lessons: tuple[Lesson, ...] = LESSONS) -> Lesson:
    """The lesson for a run's progress in 0..1."""
    return next((lesson for lesson in lessons if progress < lesson.until), lessons[-1])


def kind_of(text: str) -> int:
    """Index into KINDS of a caption."""
    words = text.split()
    told = next((kind for kind in KINDS if kind in words), None)
    return KINDS.index(told or ("pair" if "and" in words else "single"))
