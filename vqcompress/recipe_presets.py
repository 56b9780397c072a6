"""Three presets of a whole job: how hard codes are searched, on how many prompts, with fine-tuning or without.

A preset gives values to recipe keys; whatever else a recipe, an option or an argument says of these keys wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECTIONS = ("calibration", "training", "settings")
"""Recipe keys that hold mappings, in which single keys are replaced."""

_JOBS: dict[str, dict[str, Any]] = {
    "fast": {"calibration": {"count": 32}, "finetune": "none", "training": {"preset": "fast"}},
    "default": {"calibration": {"count": 64}, "finetune": "none", "training": {"preset": "default"}},
    "best": {"calibration": {"count": 256}, "finetune": "full", "training": {"preset": "best"}},
}

_SEARCHES: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {"trellis": {"state_bits": 10}, "additive": {"beam": 8, "coordinate_descent": 1}},
    "default": {"trellis": {"state_bits": "auto"}, "additive": {"beam": 16, "coordinate_descent": 3}},
    "best": {"trellis": {"state_bits": 14}, "additive": {"beam": 32, "coordinate_descent": 6}},
}
"""Preset -> method -> settings. The other methods have no search to spend time on."""

RECIPE_PRESETS = tuple(_JOBS)


def preset_values(preset: str, method: str) -> dict[str, Any]:
    """The recipe keys that ``preset`` gives to a run of ``method``. Raises `KeyError` for an unknown preset."""
    return {**_JOBS[preset], "settings": _SEARCHES[preset].get(method, {})}


def count_of_preset(preset: str) -> int:
    """Prompts of calibration. Raises `KeyError` for an unknown preset."""
    count: int = _JOBS[preset]["calibration"]["count"]
    return count


def layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of ``above`` over those of ``below``; in `SECTIONS` key by key, where both hold mappings."""
    merged = {**below, **above}
    for section in SECTIONS:
        lower, upper = below.get(section), above.get(section)
        if isinstance(lower, Mapping) and isinstance(upper, Mapping):
            merged[section] = {**lower, **upper}
    return merged


def preset_table() -> list[tuple[str, ...]]:
    """Rows of key and value by preset, the key first, for people."""
    rows = [("", *RECIPE_PRESETS)]
    jobs = [_flat(_JOBS[preset]) for preset in RECIPE_PRESETS]
    rows += [(key, *(str(job[key]) for job in jobs)) for key in jobs[0]]
    for method, settings in _SEARCHES["default"].items():
        rows += [
            (f"{method}: settings.{key}", *(str(_SEARCHES[preset][method][key]) for preset in RECIPE_PRESETS))
            for key in settings
        ]
    return rows


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {f"{key}.{name}": value for key, part in values.items() if key in SECTIONS for name, value in part.items()}
    return nested | {key: value for key, value in values.items() if key not in SECTIONS}
