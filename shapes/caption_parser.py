"""Parse the caption of a scene or a poster: background, objects, size, relation and label."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vqcompress.errors import VQCompressError
from vqcompress.shapes.posters.glyphs import LETTERS
from vqcompress.shapes.posters.scenes import IN_FRONT, TEXTURES
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, RADII, RELATIONS, SHAPES

_COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3}
_LETTER = f"[{''.join(LETTERS)}]"
_SENTENCE = re.compile(
    rf"(?P<subject>.+) on an? (?P<background>{'|'.join(BACKGROUNDS)}) background"
    rf"(?: labelled (?P<label>{_LETTER} {_LETTER}))?"
)
_JOINT = re.compile(rf" ({'|'.join((*RELATIONS, IN_FRONT, 'and'))}) ")
_GROUP = re.compile(
    rf"(?P<count>{'|'.join(_COUNTS)}) (?:(?P<size>{'|'.join(RADII)}) )?"
    rf"(?:(?P<texture>{'|'.join(TEXTURES[1:])}) )?(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})(?:s|es)?"
)


class CaptionError(VQCompressError):
    """A sentence that is no caption of a shapes scene."""


@dataclass(frozen=True)
class CaptionContent:
    """What an image of the caption must show: ``objects`` are (colour, shape), the relation's subject first.

    ``size`` and ``relation`` are None where the caption names none. ``textures`` has one name for each object,
    ``label`` the two letters that the caption tells, or none.
    """

    background: str
    objects: tuple[tuple[str, str], ...]
    size: str | None
    relation: str | None
    textures: tuple[str, ...]
    label: str


def parse_caption(text: str) -> CaptionContent:
    """Parse a sentence as `scenes.caption` or `posters.scenes.caption` writes it.

    Raises `CaptionError` for any other.
    """
    sentence = _SENTENCE.fullmatch(text)
    parts = _JOINT.split(sentence["subject"]) if sentence else []
    groups = [group for part in parts[::2] if (group := _GROUP.fullmatch(part))]
    if sentence is None or len(groups) < len(parts[::2]):
        raise CaptionError(
            f"{text!r} is no caption of a shapes scene; "
            "write one such as 'a purple cross above an orange star on a white background'"
        )
    named = [g for g in groups for _ in range(_COUNTS[g["count"]])]
    objects = tuple((g["color"], g["shape"]) for g in named)
    textures = tuple(g["texture"] or TEXTURES[0] for g in named)
    label = (sentence["label"] or "").replace(" ", "")
    relation = parts[1] if len(parts) == 3 and parts[1] != "and" else None
    return CaptionContent(sentence["background"], objects, groups[0]["size"], relation, textures, label)
