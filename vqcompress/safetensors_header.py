"""Headers of safetensors files, read as data that a stranger may have written.

A file is eight bytes with the header's length, the header in JSON, and the tensors. Nothing here reads a tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vqcompress.folder_files import open_regular

LONGEST = 100_000_000
"""Bytes: safetensors allows no longer header."""
SPARE = 1 << 24
"""Bytes that a header may have whatever the file's length; with texts of a bundle, as for a small model."""
LENGTH_BYTES = 8  # of a header's length, before it


def allowed_length(size: int) -> int:
    """Bytes that the header of a file of ``size`` bytes may have.

    A header is copied several times before it is understood, and describes more bytes than it takes.
    """
    return min(LONGEST, size - LENGTH_BYTES, SPARE + size // 4)


def read_header(file: BinaryIO) -> bytes | None:
    """The header of a safetensors file, or ``None`` if the file cannot be one."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 2 <= length <= allowed_length(os.fstat(file.fileno()).st_size):
        return None
    header = file.read(length)
    return header if len(header) == length and header.startswith(b"{") else None


def entries_of(header: bytes | None) -> dict[str, Any]:
    """The entries of a header, none where there is no header."""
    try:
        found = json.loads(header or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def data_end(entries: Mapping[str, Any]) -> int | None:
    """Bytes that the tensors of these entries take, ``None`` for entries of something else."""
    try:
        offsets = [entry["data_offsets"] for key, entry in entries.items() if key != "__metadata__"]
        whole = all(type(offset) is int for pair in offsets for offset in pair)
        return max((end for _, end in offsets), default=0) if entries and whole else None
    except (TypeError, KeyError, ValueError):
        return None


def stored_header(path: Path) -> tuple[dict[str, Any], int | None]:
    """The entries of a safetensors file's header, and the bytes that the file has by it; ``None`` where it has none."""
    with open_regular(path) as file:
        header = read_header(file)
    entries = entries_of(header)
    end = data_end(entries)
    return entries, None if header is None or end is None else LENGTH_BYTES + len(header) + end
