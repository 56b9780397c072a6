"""Which prompts a pipeline was calibrated on, as its model card says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqcompress.architectures import architecture_of
from vqcompress.errors import VQCompressError


def prompt_source(recipe: Mapping[str, Any], pipeline: Any) -> str | None:
    """Name, number and SHA-256 of the prompt set that ``recipe`` names, or that is ``pipeline``'s own by default.

    None for a recipe that says nothing of calibration; the name alone where the prompts cannot be read any more.
    """
    from vqcompress.calibration.prompts import load_prompts  # choosing prompts needs much that loading does not

    if not isinstance(calibration := recipe.get("calibration"), Mapping):
        return None
    name = calibration.get("prompts")
    try:
        prompts = load_prompts(name or architecture_of(pipeline).prompt_set)
    except VQCompressError:
        return None if name is None else f"the prompt set `{_shown(name)}`"
    used = min(calibration.get("count") or len(prompts.prompts), len(prompts.prompts))
    return (
        f"{used} of the {len(prompts.prompts)} prompts of the set `{_shown(prompts.name)}` (SHA-256 `{prompts.sha256}`)"
    )


def _shown(name: str) -> str:
    """A file by its name alone: where it lies on this machine is nobody's business."""
    return Path(name).name if Path(name).is_file() else name
