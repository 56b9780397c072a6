"""Parse a caption: background, objects, size and relation."""

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
    """A sentence that is no caption of a shapes scene."""


@dataclass(frozen=True)
class CaptionContent:
    """What an image of the caption must show: ``objects`` are (colour, shape), the relation's subject first.

    ``size`` and ``relation`` are None where the caption names none.
    """

    background: str
    objects: tuple[tuple[str, str], ...]
    size: str | None
    relation: str | None


def parse_caption(text: str) -> CaptionContent:
    """Parse a sentence as `scenes.caption` writes it. Raises `CaptionError` for any other."""
    sentence = _SENTENCE.fullmatch(text)
    parts = _JOINT.split(sentence["subject"]) if sentence else []
    groups = [group for part in parts[::2] if (group := _GROUP.fullmatch(part))]
    if sentence is None or len(groups) < len(parts[::2]):
        raise CaptionError(
            f"{text!r} is no caption of a shapes scene; "
            "write one such as 'a purple cross above an orange star on a white background'"
        )
    objects = tuple((g["color"], g["shape"]) for g in groups for _ in range(_COUNTS[g["count"]]))
    relation = parts[1] if len(parts) == 3 and parts[1] != "and" else None
    return CaptionContent(sentence["background"], objects, groups[0]["size"], relation)
