"""What the results in a run's folder depend on, and what a change of it means for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageInputs:
    """What the results of the stages depend on whose whole names match the regular expression ``stages``.

    ``settings`` are a user's, and costly to have wrong: results of other ones are kept, and the run is refused.
    ``found`` is what results are silently wrong without, such as a hash of the weights, and settings that may change
    between a stop and the next start: results of other ones are made again. JSON values only.
    """

    stages: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, stage: str) -> bool:
        """Whether these are inputs of ``stage``."""
        return re.fullmatch(self.stages, stage) is not None

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"settings": dict(self.settings), "found": dict(self.found)}


@dataclass(frozen=True)
class Changes:
    """What is different from what a folder's results were made with.

    ``refused`` are lines on settings. ``stale`` maps each stage whose results must be made again to lines on why.
    """

    refused: tuple[str, ...]
    stale: Mapping[str, tuple[str, ...]]

    def sentence(self, folder: object) -> str:
        """One line on what is made again, and why."""
        why = "; ".join(dict.fromkeys(line for lines in self.stale.values() for line in lines))
        return f"{folder}: made anew because of a change ({why}): {', '.join(self.stale)}"


def changes_since(
    written: Mapping[str, Mapping[str, Any]], inputs: Sequence[StageInputs], stages: Sequence[str]
) -> Changes:
    """What ``inputs`` say of the ``stages`` that have results, against what was ``written`` when they were made."""
    refused: dict[str, None] = {}
    stale: dict[str, tuple[str, ...]] = {}
    for each in inputs:
        held = [stage for stage in stages if each.holds(stage)]
        if not held:
            continue
        before, now = written.get(each.stages), json.loads(json.dumps(each.to_json()))
        if before is None:
            lines: tuple[str, ...] = ("it was made by another version",)
        else:
            refused |= dict.fromkeys(differences(before.get("settings"), now["settings"]))
            lines = tuple(differences(before.get("found"), now["found"]))
        if lines:
            stale |= dict.fromkeys(held, lines)
    return Changes(tuple(refused), stale)


def differences(before: Any, now: Any, at: str = "") -> list[str]:
    """The changed values, as ``key: old -> new`` with dotted keys; of a hash, that it changed."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [line for key in keys for line in differences(before.get(key), now.get(key), f"{at}.{key}".lstrip("."))]
    if before == now:
        return []
    if _is_hash(before) and _is_hash(now):
        return [f"{at or 'everything'} changed"]
    return [f"{at or 'everything'}: {_short(before)} -> {_short(now)}"]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
