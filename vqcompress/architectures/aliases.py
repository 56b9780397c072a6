"""Short names for models that open by name: where each one's ordinary diffusers folder is published."""

from __future__ import annotations

from vqcompress.architectures.published import PUBLISHED
from vqcompress.embedded import EMBEDDED
from vqcompress.models.presets import SYNONYMS

_HUB = {name: row.hub for name, row in PUBLISHED.items() if row.hub}

ALIASES: dict[str, str] = {
    **_HUB,
    **{name: _HUB[known] for name, known in SYNONYMS.items() if known in _HUB},
    **dict.fromkeys(EMBEDDED, "trained, comes with this package"),
}
"""Alias -> Hub id (of LinFusion: of the base); the embedded models need no Hub."""
