"""Load a compressed folder, or the one file that it was bundled into, after checking it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from vqcompress.architectures.folder import dtype_option
from vqcompress.architectures.stored_dtype import stored_dtype
from vqcompress.bundling import keep_for, read_bundle, temporary_folder
from vqcompress.checkpoint.manifest import bundle_problems
from vqcompress.checkpoint.verification import refuse, verify
from vqcompress.errors import RecipeError
from vqcompress.folder_files import StrPath
from vqcompress.layers.dense_budget import parse_budget, set_dense_budget
from vqcompress.placement import Placement, place


def load(
    folder: StrPath,
    *,
    checked: bool = True,
    dense_budget: str | int | None = None,
    device: str | Placement | None = None,
    offload: str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """``DiffusionPipeline.from_pretrained(folder, **options)`` after `verify`; never reads pickled weights.

    With a ``device`` ("auto" takes the accelerator, where there is one) the pipeline is on it, or its weights get there
    as ``offload`` says, see `Placement`; ``dtype`` is then "auto" by default. Without one it is on the CPU, as
    diffusers loads it.

    ``folder`` may also be a bundle, one .safetensors file. Raises `CheckpointError` that names the first problems of a
    folder that is not sound. Without ``checked``, the files are not compared with the manifest: packed layers are still
    checked as they are read. ``dense_budget`` is how much memory decoded weights may take between steps, such as
    ``"4GB"`` or ``"all"``, see `vqcompress.set_dense_budget`; without one, every call decodes.
    """
    parse_budget(dense_budget)
    placement = None
    if device is not None:
        placement = Placement.parse(device, options.pop("dtype", options.pop("torch_dtype", None)), offload)
    elif offload is not None:
        raise RecipeError("offload needs a device to load to: give device='auto', or another that is here")
    pipeline = _load(folder, checked, options, placement)
    if placement is not None:
        place(pipeline, placement)
    if dense_budget is not None:
        set_dense_budget(pipeline, dense_budget)
    return pipeline


def _load(folder: StrPath, checked: bool, options: dict[str, Any], placement: Placement | None) -> DiffusionPipeline:
    if (bundle := read_bundle(folder)) is not None:
        if checked:
            refuse(folder, bundle_problems(bundle))
        directory = temporary_folder(bundle)
        pipeline = _load(directory.name, checked, options, placement)
        keep_for(pipeline, directory)
        return pipeline
    if checked:
        refuse(folder, verify(folder))
    if placement is not None:
        options["dtype"] = placement.opening_dtype or stored_dtype(Path(folder))
    for name in ("torch_dtype", "dtype"):
        if name in options:
            options |= dtype_option(options.pop(name))
    return DiffusionPipeline.from_pretrained(str(folder), **{**options, "use_safetensors": True})
