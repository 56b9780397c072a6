"""What a training batch is made of as the run goes on: which kinds of caption, and how noisy."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("single", "two", "three", "pair", "above", "below", "left", "right")  # of captions, by a word they hold


@dataclass(frozen=True)
class Lesson:
    """Until this share of the run: batch shares in the order of KINDS, and what is added to the min-SNR odds of all noise
    levels (``floor``)."""

    until: float
    shares: tuple[float, ...]
    floor: float


# The world draws "three" and single objects with a size in their caption rarely, and they are learned last.
EVERYDAY = (0.16, 0.08, 0.12, 0.20, 0.11, 0.11, 0.11, 0.11)
LESSONS = (
    # What things look like is learned from little noise, and first: a run that turned to the noisiest levels early still
    # drew blobs at its half. Min-SNR alone all but ignores those levels, where what goes where is decided.
    Lesson(0.35, EVERYDAY, floor=0.03),
    Lesson(1.00, EVERYDAY, floor=0.15),
)


def lesson_at(progress: float, lessons: tuple[Lesson, ...] = LESSONS) -> Lesson:
    """The lesson for a run's progress in 0..1."""
    return next((lesson for lesson in lessons if progress < lesson.until), lessons[-1])


def kind_of(text: str) -> int:
    """Index into KINDS of a caption."""
    words = text.split()
    told = next((kind for kind in KINDS if kind in words), None)
    return KINDS.index(told or ("pair" if "and" in words else "single"))
