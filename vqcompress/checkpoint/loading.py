"""Load a compressed folder after checking it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from vqcompress.checkpoint.verification import verify
from vqcompress.errors import CheckpointError


def load(folder: str | Path, **options: Any) -> DiffusionPipeline:
    """``DiffusionPipeline.from_pretrained(folder, **options)`` after `verify`; never reads pickled weights.

    Raises `CheckpointError` that names the first problems of a folder that is not sound.
    """
    if problems := verify(folder):
        raise CheckpointError(
            f"{folder} is not sound: " + "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        )
    return DiffusionPipeline.from_pretrained(str(folder), **{**options, "use_safetensors": True})
