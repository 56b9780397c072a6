"""Open a local diffusers folder."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from safetensors import SafetensorError

from vqcompress.architectures.narrow_weights import narrow_dtypes
from vqcompress.errors import ArchitectureError, VQCompressError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
HALF = "fp16"
DTYPE_SINCE = Version("0.42")  # older diffusers ignores `dtype` silently; since this version `torch_dtype` warns


def open_folder(folder: Path, dtype: torch.dtype, *, narrow: bool = False) -> DiffusionPipeline:
    """The pipeline in ``folder``, weights cast to ``dtype``. With ``narrow``, a denoiser stored in 16 bits stays so.

    Raises `ArchitectureError` if ``folder`` is not a pipeline or is incomplete.
    """
    from vqcompress.models.pipelines import pipeline_class

    if problem := problem_of(folder):
        raise ArchitectureError(problem)
    dtypes = {**narrow_dtypes(folder), "default": dtype} if narrow else dtype
    try:
        return pipeline_class(folder).from_pretrained(
            str(folder), **dtype_option(dtypes), variant=_variant(folder), use_safetensors=True, local_files_only=True
        )
    except VQCompressError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ArchitectureError(
            f"{folder} could not be opened as a diffusers pipeline: {_first_line(error)}"
        ) from error


def problem_of(folder: Path) -> str | None:
    """Why ``folder`` is not a complete diffusers pipeline, in one line. None if nothing seems to be missing."""
    if not (folder / INDEX).is_file():
        return f"{folder} is not a diffusers pipeline: it has no {INDEX}; give the folder that `save_pretrained` wrote"
    try:
        components = _components(folder)
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder / INDEX} cannot be read: {_first_line(error)}"
    for component in components:
        if problem := _component_problem(folder / component):
            return problem
    return None


def _components(folder: Path) -> list[str]:
    """Names of the components listed in the folder's index."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_") and value[0]]


def _component_problem(component: Path) -> str | None:
    if not component.is_dir():
        return f"{component.parent} is incomplete: {INDEX} names {component.name!r}, but there is no such folder"
    if not (component / "config.json").is_file() or any(component.glob("*.safetensors")):
        return None
    if any(component.glob("*.bin")):
        return (
            f"{component} stores its weights only as pickle (.bin), which can hold code and is not read; "
            "save the pipeline again with safe_serialization=True"
        )
    return f"{component} has no .safetensors weights; copy or download it again"


def _variant(folder: Path) -> str | None:
    """``fp16`` if some component of the folder has only half-precision files."""
    for component in _components(folder):
        weights = [path.name for path in (folder / component).glob("*.safetensors")]
        if weights and all(f".{HALF}." in name or f".{HALF}-" in name for name in weights):
            return HALF
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@lru_cache(maxsize=1)
def _option_name() -> str:
    return "dtype" if Version(version("diffusers")) >= DTYPE_SINCE else "torch_dtype"


def dtype_option(dtype: torch.dtype | Any) -> dict[str, Any]:
    """``{name: dtype}``, the dtype argument of `from_pretrained` and `from_single_file` in this diffusers version."""
    return {_option_name(): dtype}
