"""What a caption claims: background, objects, size and relation, read back from the sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vqcompress.errors import VQCompressError
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, RADII, RELATIONS, SHAPES

_COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3}
_SENTENCE = re.compile(rf"(?P<subject>.+) on an? (?P<background>{'|'.join(BACKGROUNDS)}) background")
_JOINT = re.compile(rf" ({'|'.join((*RELATIONS, 'and'))}) ")
_GROUP = re.compile(
    rf"(?P<count>{'|'.join(_COUNTS)}) (?:(?P<size>{'|'.join(RADII)}) )?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})(?:s|es)?"
)


class CaptionError(VQCompressError):
    """A sentence that is no caption of this world."""


@dataclass(frozen=True)
class Claim:
    """What must be seen: `looks` holds (colour, shape) of every object, the relation's subject first."""

    background: str
    looks: tuple[tuple[str, str], ...]
    size: str | None
    relation: str | None


def read_claim(text: str) -> Claim:
    """Parse a caption of this world, such as `scenes.caption` writes."""
    sentence = _SENTENCE.fullmatch(text)
    parts = _JOINT.split(sentence["subject"]) if sentence else []
    groups = [_GROUP.fullmatch(part) for part in parts[::2]]
    if not groups or not all(groups):
        raise CaptionError(
            f"{text!r} is no caption of the shapes world; one reads 'a purple cross above an orange star on a white background'"
        )
    looks = tuple((g["color"], g["shape"]) for g in groups for _ in range(_COUNTS[g["count"]]))
    relation = parts[1] if len(parts) == 3 and parts[1] != "and" else None
    return Claim(sentence["background"], looks, groups[0]["size"], relation)
