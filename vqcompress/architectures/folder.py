"""Open a local diffusers folder."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from safetensors import SafetensorError

from vqcompress.architectures.narrow_weights import narrow_dtypes
from vqcompress.architectures.stored_dtype import stored_dtype
from vqcompress.errors import ArchitectureError, VQCompressError, first_line
from vqcompress.working_memory import is_out_of_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
MODULAR = (
    "is a modular pipeline, which has blocks in place of a call: open it with diffusers' ModularPipeline, call its "
    "load_components(), and give it to vqcompress.quantize, which takes those that have a plain class"
)
HALF = "fp16"
WEIGHT_FILE = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)"
    r"((\.(?P<variant>[^.]+?))?(-\d{5}-of-\d{5})?|-\d{5}-of-\d{5}\.(?P<older>[^.]+))\.safetensors"
)
DTYPE_SINCE = Version("0.42")  # older diffusers ignores `dtype` silently; since this version `torch_dtype` warns


def open_folder(
    folder: Path, dtype: torch.dtype | None, *, narrow: bool = False, given: Mapping[str, Any] | None = None
) -> DiffusionPipeline:
    """The pipeline in ``folder``, weights cast to ``dtype``; None: the one that its denoiser is stored in.

    With ``narrow``, a denoiser stored in 16 bits stays so.

    ``given`` are components to take instead of the folder's. Raises `ArchitectureError` if ``folder`` is not a pipeline
    or is incomplete.
    """
    from vqcompress.models.pipelines import pipeline_class

    given = given or {}
    if problem := problem_of(folder, without=given):
        raise ArchitectureError(problem)
    options: dict[str, Any] = {"variant": variant_of(folder, without=given), "use_safetensors": True}
    dtype = dtype or stored_dtype(folder)
    dtypes = {**narrow_dtypes(folder), "default": dtype} if narrow else dtype
    try:
        return pipeline_class(folder).from_pretrained(
            str(folder), **dtype_option(dtypes), **options, **given, local_files_only=True
        )
    except VQCompressError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        if is_out_of_memory(error):
            raise
        raise ArchitectureError(f"{folder} could not be opened as a diffusers pipeline: {first_line(error)}") from error


def problem_of(folder: Path, *, without: Container[str] = ()) -> str | None:
    """Why ``folder`` is not a complete diffusers pipeline, in one line. None if nothing seems to be missing.

    The components ``without`` may be missing.
    """
    if not (folder / INDEX).is_file() and (folder / MODULAR_INDEX).is_file():
        return f"{folder} {MODULAR}"
    if not (folder / INDEX).is_file():
        return f"{folder} is not a diffusers pipeline: it has no {INDEX}; give the folder that `save_pretrained` wrote"
    try:
        components = _components(folder)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{folder / INDEX} cannot be read: {first_line(error)}"
    for component in components:
        if component not in without and (problem := _component_problem(folder / component)):
            return problem
    return None


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's ``model_index.json``."""
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))


def _components(folder: Path) -> list[str]:
    """Names of the components listed in the folder's index."""
    index = read_index(folder)
    parts = {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}
    return [name for name, value in parts.items() if value and value[0]]


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


def variant_of(folder: Path, *, without: Container[str] = ()) -> str | None:
    """The variant to open (``fp16``, ``bf16``, …), or None if every component, save ``without``, has files without one.

    ``diffusion_pytorch_model.fp16.safetensors`` is of variant fp16, as is the shard
    ``model.fp16-00001-of-00002.safetensors``. diffusers opens files without a variant where a component lacks the
    asked one, so one variant serves components of both kinds. Raises `ArchitectureError` if no variant does.
    """
    found = {name: _variants(folder / name) for name in _components(folder) if name not in without}
    only = {name: variants for name, variants in found.items() if variants and None not in variants}
    if not only:
        return None
    common = set.intersection(*only.values())
    if not common:
        kinds = "; ".join(f"{name} only as {', '.join(sorted(map(str, found)))}" for name, found in only.items())
        raise ArchitectureError(
            f"{folder} has no variant that all its components have ({kinds}): copy the missing files, or give the "
            "files without a variant"
        )
    return HALF if HALF in common else min(map(str, common))


def _variants(component: Path) -> set[str | None]:
    """The variants of a component's weight files, None among them for files without one."""
    matches = (WEIGHT_FILE.fullmatch(path.name) for path in component.glob("*.safetensors"))
    return {match["variant"] or match["older"] for match in matches if match}


@lru_cache(maxsize=1)
def _option_name() -> str:
    return "dtype" if Version(version("diffusers")) >= DTYPE_SINCE else "torch_dtype"


def dtype_option(dtype: torch.dtype | Any) -> dict[str, Any]:
    """``{name: dtype}``, the dtype argument of `from_pretrained` and `from_single_file` in this diffusers version."""
    return {_option_name(): dtype}
