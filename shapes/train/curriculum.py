"""What training batches are made of as the run advances: shares of caption kinds, and noise levels."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("single", "two", "three", "pair", "above", "below", "left", "right")  # of captions, by a word in them


@dataclass(frozen=True)
class CurriculumStage:
    """A stage that lasts until the share ``until`` of the run.

    ``shares`` are the parts of a batch in the order of `KINDS`, or None for those of the world; ``floor`` is added to
    the min-SNR odds of all noise levels.
    """

    until: float
    shares: tuple[float, ...] | None
    floor: float


# The world draws "three" and single objects with a size in their caption rarely, and they are learned last.
SHARES = (0.16, 0.08, 0.12, 0.20, 0.11, 0.11, 0.11, 0.11)
CURRICULUM = (
    # Objects' looks are learned from little noise, so those levels come first: a run that turned to the noisiest levels
    # early still drew blobs halfway. Min-SNR alone all but ignores the noisiest levels, where the layout is decided.
    CurriculumStage(0.35, SHARES, floor=0.03),
    CurriculumStage(1.00, SHARES, floor=0.15),
)
POSTER_CURRICULUM = tuple(CurriculumStage(stage.until, None, stage.floor) for stage in CURRICULUM)


def stage_at(progress: float, curriculum: tuple[CurriculumStage, ...] = CURRICULUM) -> CurriculumStage:
    """The stage for a run's progress in 0..1."""
    return next((stage for stage in curriculum if progress < stage.until), curriculum[-1])


def kind_of(text: str) -> int:
    """Index into `KINDS` of a caption."""
    words = text.split()
    named = next((kind for kind in KINDS if kind in words), None)
    return KINDS.index(named or ("pair" if "and" in words else "single"))
