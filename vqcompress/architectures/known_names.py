"""Names of published models as people write them: other spellings, Hub ids, and what was perhaps meant by a mistake."""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from vqcompress.architectures.architecture import Architecture
from vqcompress.architectures.published import PUBLISHED
from vqcompress.embedded import EMBEDDED
from vqcompress.models.hub_pipelines import HUB_PIPELINES
from vqcompress.models.presets import SYNONYMS

SHOWN = 4  # suggestions
ALIKE = 0.68  # of `difflib`'s ratio
LEAST_PREFIX = 3  # letters of a family's name

HUB_IDS: dict[str, str] = {
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2-1": "sd21",
    "bytedance/sdxl-lightning": "sdxl-lightning",
    "qwen/qwen-image-edit-2509": "qwen-image-edit",
    "wan-ai/wan2.2-t2v-a14b": "wan22-t2v-a14b",
    "wan-ai/wan2.2-i2v-a14b": "wan22-i2v-a14b",
    "wan-ai/wan2.2-ti2v-5b": "wan22-ti2v-5b",
    "kwai-kolors/kolors": "kolors",
    "tencent/hunyuanimage-2.1": "hunyuan-image",
    "tencent/hunyuanvideo-1.5": "hunyuan-video-15",
    "stabilityai/stable-diffusion-3-medium": "sd3-medium",
}
"""Other repositories of the same networks, in lower case: earlier owners, and the publishers' own layouts."""


def known_name(model: str) -> str | None:
    """The name of the published model that ``model`` is another spelling of, or a Hub id of; None if there is none.

    Case and punctuation do not count (``FLUX.1-dev``, ``fluxdev``), and a folder or file of this name is none.
    """
    if model in PUBLISHED or model in SYNONYMS:
        return SYNONYMS.get(model, model)
    if model in EMBEDDED or os.path.exists(os.path.expanduser(model)):
        return None
    if "/" in model:
        return _hub_ids().get(model.lower())
    found = _spellings().get(_plain(model), set())
    return next(iter(found)) if len(found) == 1 else None


def sampled_as_published(architecture: Architecture, model: object) -> Architecture:
    """``architecture`` with steps, guidance and size as published, if ``model`` is a name of `HUB_PIPELINES`."""
    row = HUB_PIPELINES.get(known_name(model) or "") if isinstance(model, str) else None
    return replace(architecture, defaults=row.sampling) if row else architecture


def suggestions(model: str) -> list[str]:
    """Names that were perhaps meant by ``model``, the likeliest first: those that begin like it, then similar ones."""
    wanted, spellings = _plain(model.rpartition("/")[2]), _spellings()
    begins = [
        name
        for key, names in spellings.items()
        if len(wanted) >= LEAST_PREFIX and key.startswith(wanted)
        for name in names
    ]
    alike = [name for key in difflib.get_close_matches(wanted, spellings, SHOWN, ALIKE) for name in spellings[key]]
    order = list(PUBLISHED)
    return list(dict.fromkeys([*sorted(set(begins), key=order.index), *alike]))[:SHOWN]


def perhaps_meant(model: str) -> str:
    """``did you mean a, b or c?``, or an empty string."""
    *others, last = suggestions(model) or [""]
    if not last:
        return ""
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@cache
def _hub_ids() -> dict[str, str]:
    own = {row.hub.lower(): name for name, row in reversed(PUBLISHED.items()) if row.hub and not row.official}
    return HUB_IDS | own


@cache
def _spellings() -> dict[str, set[str]]:
    """Spelling without punctuation -> the names that it may mean."""
    found: dict[str, set[str]] = defaultdict(set)
    for spelling, name in _written():
        found[_plain(spelling)].add(name)
    return dict(found) | {_plain(name): {name} for name in PUBLISHED}


def _written() -> Iterator[tuple[str, str]]:
    yield from ((name, name) for name in PUBLISHED)
    yield from SYNONYMS.items()
    for repo, name in _hub_ids().items():
        short = repo.rpartition("/")[2]
        yield short, name
        yield re.sub(r"[-_](diffusers|ms)$", "", short), name
