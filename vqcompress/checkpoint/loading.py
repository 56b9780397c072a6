"""Load a compressed folder, or the one file that it was bundled into, after checking it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from vqcompress.architectures.folder import dtype_option
from vqcompress.bundle import keep_for, read_bundle, temporary_folder
from vqcompress.checkpoint.verification import verify
from vqcompress.errors import CheckpointError


def load(folder: str | Path, **options: Any) -> DiffusionPipeline:
    """``DiffusionPipeline.from_pretrained(folder, **options)`` after `verify`; never reads pickled weights.

    ``folder`` may also be a bundle, one .safetensors file. Raises `CheckpointError` that names the first problems of a
    folder that is not sound.
    """
    if (bundle := read_bundle(folder)) is not None:
        directory = temporary_folder(bundle)
        pipeline = load(directory.name, **options)
        keep_for(pipeline, directory)
        return pipeline
    if problems := verify(folder):
        raise CheckpointError(
            f"{folder} is not sound: " + "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        )
    for name in ("torch_dtype", "dtype"):
        if name in options:
            options |= dtype_option(options.pop(name))
    return DiffusionPipeline.from_pretrained(str(folder), **{**options, "use_safetensors": True})
