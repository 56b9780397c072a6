"""Keep what belongs to one machine out of what is published: where files were, and so who had them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = ("_name_or_path", "name_or_path")
"""Keys under which diffusers and transformers note where a part was read from. Loading sets them anew."""

CONFIGS = ("model_index.json", "config.json", "*_config.json")
"""Files that these libraries write beside weights and vocabularies."""


def without_local_names(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """``recipe`` with files and folders by their last names: the model, and the calibration prompts."""
    public = dict(recipe)
    if isinstance(model := public.get("model"), str):
        public["model"] = public_name(model)
    calibration = public.get("calibration")
    if isinstance(calibration, Mapping) and isinstance(prompts := calibration.get("prompts"), str):
        public["calibration"] = {**calibration, "prompts": public_name(prompts)}
    return public


def public_name(name: str) -> str:
    """``name`` where it means the same everywhere, as a Hub id does; of a path, only the last part."""
    if name.startswith(("~", ".", os.sep)) or os.path.isabs(name) or os.path.exists(name):
        return Path(os.path.abspath(name)).name
    return name


def forget_local_names(folder: Path) -> None:
    """Remove from the configs below ``folder`` where parts were read from, and every value that is a path here."""
    for path in sorted({path for pattern in CONFIGS for path in folder.rglob(pattern)}):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if (after := _cleaned(before)) != before:
            path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in SOURCES and not _is_local_path(item)}
        return {key: _cleaned(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value if not _is_local_path(item)]
    return value


def _is_local_path(value: Any) -> bool:
    """An absolute path of this machine. A token such as "/" or "/>" is none."""
    if not isinstance(value, str) or not os.path.isabs(value) or len(Path(value).parts) <= 2:
        return False
    home = os.path.join(os.path.expanduser("~"), "")  # "/" for users without a home
    return os.path.exists(value) or (len(Path(home).parts) > 1 and value.startswith(home))
