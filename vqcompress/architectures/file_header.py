"""The names, shapes, dtypes and metadata of a .safetensors file, read without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqcompress.errors import ArchitectureError


class Entry(NamedTuple):
    """A tensor's dtype in safetensors' words, like ``"F16"``, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FileHeader:
    """What ``path`` says of itself; ``entries`` by the tensors' names."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> FileHeader:
        """Raises `ArchitectureError` for a file that is not safetensors."""
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                entries = {name: Entry(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
                return cls(path, entries, file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ArchitectureError(f"{path} cannot be read as safetensors: {error}") from error

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors ``names``, as they are stored."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def under(self, *prefixes: str) -> list[str]:
        """Names that start with one of ``prefixes``."""
        return [name for name in self.entries if name.startswith(prefixes)]
