"""Write a compressed pipeline as a dense one, for programs that cannot read packed layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from vqcompress.bundling import write_bundle
from vqcompress.checkpoint.ldm_checkpoint import checkpoint_metadata, has_ldm_layout, ldm_tensors
from vqcompress.checkpoint.loading import load
from vqcompress.checkpoint.local_names import forget_local_names
from vqcompress.checkpoint.publication import check_target, naming_disk_problems, publish
from vqcompress.disk import sync, write_with_umask
from vqcompress.errors import CheckpointError, RecipeError
from vqcompress.folder_files import StrPath
from vqcompress.layers import make_dense, vq_layers

KeyLayout = Literal["diffusers", "ldm"]
KEY_LAYOUTS: tuple[KeyLayout, ...] = ("diffusers", "ldm")
SINGLE_FILE = ".safetensors"


def dequantize(
    folder: StrPath,
    output: StrPath,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    layout: KeyLayout | None = None,
) -> Path:
    """Write the pipeline in ``folder`` (a folder or a bundle) to ``output`` with dense weights in ``dtype``.

    ``output`` is a folder in the layout of the base model or, where it ends in ``.safetensors``, one file: in the
    original (``"ldm"``) key layout where the pipeline has one, else with diffusers' keys, ``<component>.<key>``;
    ``layout`` chooses. Raises `CheckpointError` when ``folder`` is not sound or ``output`` exists and ``overwrite`` is
    off, `UnsupportedError` for a pipeline without an LDM layout.
    """
    output = Path(output)
    single = output.suffix == SINGLE_FILE
    _check(output, single, layout, overwrite)
    pipeline = _dense(load(folder, dtype=dtype), dtype)
    if not single:
        with publish(output, overwrite) as partial:
            pipeline.save_pretrained(partial, safe_serialization=True)
            forget_local_names(partial)
    elif layout == "ldm" or (layout is None and has_ldm_layout(pipeline)):
        _write_ldm(pipeline, output, dtype)
    else:
        _write_diffusers(pipeline, output)
    return output


def _check(output: Path, single: bool, layout: KeyLayout | None, overwrite: bool) -> None:
    """Raise for arguments that do not fit, before anything is loaded."""
    if layout is not None and layout not in KEY_LAYOUTS:
        raise RecipeError(f"layout {layout!r} is unknown; there are {', '.join(KEY_LAYOUTS)}")
    if not single:
        if layout == "ldm":
            raise RecipeError(f"the LDM layout is one file: give an output that ends in {SINGLE_FILE}, not {output}")
        check_target(output, overwrite)
    elif output.is_dir() or (output.exists() and not overwrite):
        raise CheckpointError(f"{output} exists; name another file, or pass overwrite=True (--overwrite) to replace it")


def _dense(pipeline: Any, dtype: torch.dtype) -> Any:
    for component in pipeline.components.values():
        if isinstance(component, nn.Module) and vq_layers(component):
            make_dense(component, dtype)
            component.__dict__.pop("hf_quantizer", None)
    return pipeline


def _write_ldm(pipeline: Any, output: Path, dtype: torch.dtype) -> None:
    tensors, metadata = ldm_tensors(pipeline), checkpoint_metadata(pipeline, dtype)
    _write_file(output, lambda partial: write_with_umask(partial, lambda path: save_file(tensors, path, metadata)))


def _write_diffusers(pipeline: Any, output: Path) -> None:
    def write(partial: Path) -> None:
        with TemporaryDirectory(dir=partial.parent, prefix=f".{output.name}.") as folder:
            pipeline.save_pretrained(folder, safe_serialization=True)
            forget_local_names(Path(folder))
            write_bundle(folder, partial)

    _write_file(output, write)


def _write_file(output: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``output``, which it then replaces in one rename."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    with naming_disk_problems(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            sync(partial)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
