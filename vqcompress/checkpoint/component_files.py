"""The components of a pipeline folder: their configs and the headers of their weight files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vqcompress.errors import CheckpointError

ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is, without its contents; ``dtype`` in safetensors' words, like ``"F16"``."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

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
        found = self.config.get("quantization_config")
        return found if isinstance(found, dict) and found.get("quant_method") == "vqcompress" else None

    @property
    def nbytes(self) -> int:
        """Bytes of all its files on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def weight_files(self) -> list[Path]:
        """Its safetensors files: the shards that the index names, or the one file without a variant."""
        for index in sorted(self.folder.glob("*.safetensors.index.json")):
            return sorted({self.folder / name for name in read_json(index)["weight_map"].values()})
        standard = [self.folder / f"{stem}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
        return [path for path in standard if path.is_file()] or sorted(self.folder.glob("*.safetensors"))

    def tensors(self) -> dict[str, StoredTensor]:
        """Headers of all its tensors. Raises `CheckpointError` for a file that is missing or truncated."""
        return {key: tensor for path in self.weight_files() for key, tensor in _headers(path)}


def components(folder: Path) -> list[ComponentFiles]:
    """The components of ``folder`` that have a config. Raises `CheckpointError` when it is no pipeline folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise CheckpointError(f"{folder} is no pipeline folder: it has no model_index.json")
    found = []
    for name, entry in read_json(index).items():
        path = folder / name / "config.json"
        if (
            isinstance(entry, list)
            and len(entry) == 2
            and all(isinstance(part, str) for part in entry)
            and path.is_file()
        ):
            found.append(ComponentFiles(name, folder / name, entry[0], entry[1], read_json(path)))
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `CheckpointError` when ``path`` does not hold one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return data


def _headers(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                part = file.get_slice(key)
                yield key, StoredTensor(path, tuple(part.get_shape()), part.get_dtype())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy or download it again") from None
