"""Open a diffusers pipeline by alias, path or Hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqcompress.architectures.folder import open_folder
from vqcompress.architectures.hub import cached_or_downloaded, downloaded_file
from vqcompress.architectures.known_names import known_name, perhaps_meant
from vqcompress.architectures.linfusion import mount_published
from vqcompress.architectures.published import PUBLISHED, Published, published
from vqcompress.architectures.single_file import open_single_file
from vqcompress.embedded import EMBEDDED
from vqcompress.errors import ArchitectureError
from vqcompress.folder_files import StrPath
from vqcompress.models.hub_pipelines import HUB_PIPELINES
from vqcompress.models.presets import SYNONYMS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_HUB = {name: row.hub for name, row in PUBLISHED.items() if row.hub}

ALIASES: dict[str, str] = {
    **_HUB,
    **{name: _HUB[known] for name, known in SYNONYMS.items() if known in _HUB},
    **dict.fromkeys(EMBEDDED, "trained, comes with this package"),
}
"""Alias -> Hub id (for LinFusion, that of the base model). The embedded models need no Hub."""


def open_pipeline(
    model: StrPath,
    *,
    dtype: torch.dtype | None = torch.float32,
    narrow: bool = False,
    base: StrPath | None = None,
) -> DiffusionPipeline:
    """Open ``model`` for compression, with weights cast to ``dtype``; None: the one that its denoiser is stored in.

    ``model`` is an alias (`ALIASES`, in any spelling), a local diffusers folder, a single ``.safetensors`` file (a
    whole checkpoint or a denoiser), or a Hub id. Hub models are read from the local cache if they are complete there.
    With ``narrow``, a denoiser stored in 16 bits stays so. ``base`` (alias, folder or Hub id) is the pipeline from
    which a single file takes what it lacks, instead of its family's published one. Only safetensors are read, never
    pickles. Raises `ArchitectureError`, which says what to do, if there is no such model or it is not a pipeline.
    """
    name = str(model)
    path = Path(os.path.expanduser(name))
    if base is not None and not os.path.isfile(path):
        raise ArchitectureError(
            f"base ({base}) is for a model that is a single .safetensors file, and {name} is none here; leave base "
            "out, or correct the path"
        )
    if name in EMBEDDED:
        return open_folder(_embedded(name), dtype)
    if name in ALIASES:
        return _open_alias(name, dtype, narrow)
    if os.path.isdir(path):  # False for what can be no name, where a Path raises
        return open_folder(path, dtype, narrow=narrow)
    if os.path.isfile(path):
        return _open_file(path, dtype, narrow, base)
    if "/" not in name and (known := known_name(name)) and known != name:
        return open_pipeline(known, dtype=dtype, narrow=narrow)
    if HUB_ID.fullmatch(name) and path.suffix != ".safetensors":
        return open_folder(cached_or_downloaded(name), dtype, narrow=narrow)
    raise _unknown(name)


def _open_alias(name: str, dtype: torch.dtype | None, narrow: bool) -> DiffusionPipeline:
    if (found := HUB_PIPELINES.get(name)) and found.weights:
        return open_single_file(downloaded_file(found.weights), dtype, base=found.hub, narrow=narrow, few_step=True)
    pipeline = open_folder(cached_or_downloaded(ALIASES[name]), dtype, narrow=narrow)
    row = published(name)
    return mount_published(pipeline, row[1].official) if row and row[1].official else pipeline


def _embedded(name: str) -> Path:
    folder = EMBEDDED[name].path
    if not (folder / "model_index.json").is_file():
        raise ArchitectureError(
            f"the embedded model {name!r} is missing from this installation; reinstall vqcompress, or train it "
            "from a clone: python -m vqcompress.shapes.train"
        )
    return folder


def _open_file(path: Path, dtype: torch.dtype | None, narrow: bool, base: StrPath | None) -> DiffusionPipeline:
    if path.suffix != ".safetensors":
        raise ArchitectureError(
            f"{path} is a single file but not a .safetensors file; other kinds can hold code and are not read: "
            "convert it first"
        )
    named = None if base is None else _base(str(base))
    return open_single_file(path, dtype, base=named, narrow=narrow)


def _base(name: str) -> str:
    """A folder or a Hub id. Raises `ArchitectureError` for what is neither."""
    known = known_name(name)
    if name in EMBEDDED:
        return str(_embedded(name))
    if known and (hub := _HUB.get(known)):
        return hub
    if not os.path.isdir(path := os.path.expanduser(name)) and not HUB_ID.fullmatch(name):
        raise ArchitectureError(f"base: {_unknown(name)}")
    return path


def _unknown(name: str) -> ArchitectureError:
    looks_like_path = "/" in name or name.startswith((".", "~")) or name.endswith(".safetensors")
    if looks_like_path:
        return ArchitectureError(f"{name}: no such file or folder, and not a Hub id (owner/name)")
    if row := published(name):
        return _unopened(*row)
    return ArchitectureError(
        f"unknown model {name!r}: {perhaps_meant(name) or 'give a name that `vqcompress presets` lists'}"
        "; also a diffusers folder, a .safetensors file, or a Hub id (owner/name)"
    )


def _unopened(name: str, row: Published) -> ArchitectureError:
    if row.official is None:
        return ArchitectureError(f"no weights of {name} were published, only its size; `--dry-run` plans it")
    return ArchitectureError(
        f"{name} was published as official weights ({row.official}): get them, then `vqcompress convert {name} WEIGHTS "
        "-o FOLDER` makes a folder to give here; `--dry-run` needs no weights"
    )
