"""The components of a pipeline folder: their configs and the headers of their weight files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from vqcompress.errors import CheckpointError
from vqcompress.folder_files import name_problem, read_json, regular_size, walk
from vqcompress.safetensors_header import ELEMENT_BYTES, METADATA, stored_header

MANIFEST_NAME = "vqcompress_manifest.json"
PACKED_DTYPES = {"I8": torch.int8, "F16": torch.float16, "I32": torch.int32}
LOADED = tuple(
    f"{stem}.safetensors{end}" for stem in ("diffusion_pytorch_model", "model") for end in ("", ".index.json")
)


class StoredTensor(NamedTuple):
    """Where a tensor lies and what it is, without its contents; ``dtype`` in safetensors' words, like ``"F16"``."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def packed_dtype(self) -> torch.dtype | str:
        """Torch's dtype where packed layers have tensors of it, else safetensors' word."""
        return PACKED_DTYPES.get(self.dtype, self.dtype)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its contents."""
        return self.elements * ELEMENT_BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class ComponentFiles:
    """One component of a pipeline folder; ``library`` and ``class_name`` as ``model_index.json`` names them."""

    name: str
    folder: Path
    library: str
    class_name: str
    config: dict[str, Any]

    @property
    def description(self) -> dict[str, Any] | None:
        """Its ``quantization_config``, if it is packed by vqcompress."""
        return packed_description(self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files on disk."""
        return bytes_below(self.folder)

    def tensors(self) -> dict[str, StoredTensor]:
        """Headers of all its tensors. Raises `CheckpointError` for a file that is missing or truncated."""
        return component_headers(self.folder)


def packed_description(config: dict[str, Any]) -> dict[str, Any] | None:
    """The ``quantization_config`` in a component's config, if it is packed by vqcompress."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) and found.get("quant_method") == "vqcompress" else None


def holds_codes(headers: Mapping[str, StoredTensor]) -> bool:
    """Whether weights are stored in bytes, as only those of packed layers are."""
    return any(key.endswith("weight") and tensor.dtype == "I8" for key, tensor in headers.items())


def without_config(folder: Path) -> Iterator[str]:
    """A line for each component of a pipeline folder whose weights are codes, and whose config is gone.

    A library would build the network of a config of its own and then find that nothing fits.
    """
    for name in read_json(folder / "model_index.json"):
        config = folder / name / "config.json" if name_problem(name) is None else None
        if config is not None and not config.exists() and holds_codes(tensor_headers(weight_files(config.parent))):
            yield f"{config} is missing and said how to read the packed weights beside it; copy or download it again"


def undescribed(config: Path) -> str:
    """What to say of a config from before its component was packed."""
    return f"{config} does not say how to read the packed weights beside it; copy or download it again"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: shards that the index names, or the one file without a variant.

    Raises `CheckpointError` for an index that cannot be read or names files elsewhere.
    """
    if (index := _index(folder)) is not None:
        return sorted(folder / name for name in set(_weight_map(index).values()))
    standard = [folder / f"{stem}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
    return [path for path in standard if path.exists()] or sorted(folder.glob("*.safetensors"))


def check_found_by_loaders(folder: Path) -> None:
    """Raise `CheckpointError` where a component has weight files, but none by a name that loaders look for."""
    if weight_files(folder) and not any((folder / name).exists() for name in LOADED):
        raise CheckpointError(
            f"{folder} has weight files, but none of {', '.join(LOADED)}, by which they are found; download it again"
        )


def component_headers(folder: Path) -> dict[str, StoredTensor]:
    """Headers of all tensors in a component's weight files.

    Raises `CheckpointError` for a file that is missing or truncated, and for an index that says something else.
    """
    headers = tensor_headers(weight_files(folder))
    if (index := _index(folder)) is not None:
        listed = _weight_map(index)
        wrong = sorted(key for key in listed.keys() ^ headers.keys())
        wrong += sorted(key for key in listed.keys() & headers.keys() if listed[key] != headers[key].file.name)
        if wrong:
            raise CheckpointError(
                f"{index} does not list the tensors of its files ({wrong[0][:100]}); download it again"
            )
    return headers


def _index(folder: Path) -> Path | None:
    """The index by which a component's shards are found, ``None`` where it has no shards."""
    standard = [folder / f"{stem}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
    indices = [path.with_suffix(".safetensors.index.json") for path in standard]
    if found := [path for path in indices if path.exists()]:
        return found[0]
    others = [] if any(path.exists() for path in standard) else sorted(folder.glob("*.safetensors.index.json"))
    return others[0] if others else None


def bytes_below(folder: Path) -> int:
    """Bytes of all regular files below ``folder``."""
    return sum(regular_size(folder / name) or 0 for name, _ in walk(folder))


def components(folder: Path) -> list[ComponentFiles]:
    """The components of ``folder`` that have a config. Raises `CheckpointError` when it is no pipeline folder."""
    index = folder / "model_index.json"
    if regular_size(index) is None:
        raise CheckpointError(f"{folder} is no pipeline folder: it has no model_index.json")
    found = []
    for name, entry in read_json(index).items():
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            continue
        if problem := name_problem(name):
            raise CheckpointError(f"{index} names a component that is none: {problem}")
        path = folder / name / "config.json"
        if path.exists():
            found.append(ComponentFiles(name, folder / name, entry[0], entry[1], read_json(path)))
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Key -> the file that has it, as an index says."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{index} has no weight_map; copy or download it again")
    for name in sorted(set(listed.values())):
        if problem := name_problem(name) or ("it lies in another folder" if "/" in name else None):
            raise CheckpointError(f"{index} names the file {name[:100]!r}: {problem}")
    return listed


def tensor_headers(files: list[Path]) -> dict[str, StoredTensor]:
    """Headers of all tensors in safetensors ``files``.

    Raises `CheckpointError` for a file that is missing or truncated, and for a tensor that is in two.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        for key, tensor in _headers(path):
            if key in found:
                raise CheckpointError(f"{path}: {key} is in {found[key].file.name} too; copy or download both again")
            found[key] = tensor
    return found


def _headers(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    size, (header, said) = regular_size(path), stored_header(path)
    if said is not None and said != size:  # a file that is mostly a hole may be longer than what memory can map
        raise CheckpointError(
            f"{path} cannot be read: it has {size} bytes, its header says {said}; copy or download it again"
        )
    if not header.sound:
        _ask_the_library(path)
    for key, entry in header.entries.items():
        if key != METADATA:
            yield key, StoredTensor(path, tuple(entry["shape"]), entry["dtype"])


def _ask_the_library(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy or download it again") from None
