"""Headers of safetensors files, read as data that a stranger may have written.

A file is eight bytes with the header's length, the header in JSON, and the tensors. Nothing here reads a tensor.
The library's own check of a header takes longer than all that is done here, so it is asked only where it could disagree
(`Header.sound`).
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vqcompress.folder_files import open_regular

LONGEST = 100_000_000
"""Bytes: safetensors allows no longer header."""
SPARE = 1 << 24
"""Bytes that a header may have whatever the file's length; with texts of a bundle, as for a small model."""
METADATA, OFFSETS = "__metadata__", "data_offsets"  # keys of a header and of an entry
FIELDS = ("dtype", "shape", OFFSETS)  # of an entry
ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
LARGEST = (1 << 63) - 1  # size of a tensor along one axis
NOT_STRICT = re.compile(r"[:,\[]\s*-|\\u[dD][89a-fA-F]")
"""A zero with a sign, half of a surrogate pair."""
LENGTH_BYTES = 8  # of a header's length, before it
KEPT_LENGTH = 1 << 21
"""Bytes of a header that is kept once it is understood: of ten thousand tensors."""


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


class Header(NamedTuple):
    """What a header says."""

    entries: Mapping[str, Any]
    """Key of a tensor -> its dtype, shape and offsets; beside them the metadata."""
    end: int | None
    """Bytes that the tensors take; ``None`` for entries of something else."""
    sound: bool
    """Whether the library opens a file with these entries, if it is as long as they say. Where this is false it may do
    so all the same: of dtypes that no layer of ours has, say."""


NO_HEADER = Header({}, None, sound=False)


def understood(header: bytes) -> Header:
    """What ``header`` says; that of no file has no entries."""
    return _kept(header) if len(header) <= KEPT_LENGTH else _parsed(header)


def stored_header(path: Path) -> tuple[Header, int | None]:
    """The header of a safetensors file, and the bytes that the file has by it; ``None`` where it says none."""
    with open_regular(path) as file:
        text = read_header(file)
    if text is None:
        return NO_HEADER, None
    header = understood(text)
    return header, None if header.end is None else LENGTH_BYTES + len(text) + header.end


def _parsed(text: bytes) -> Header:
    try:
        decoded = text.decode()
        entries = json.loads(decoded)
    except (ValueError, RecursionError):
        return NO_HEADER
    if not isinstance(entries, dict):
        return NO_HEADER
    pairs = _offsets(entries)
    end = max((end for _, end in pairs), default=0) if pairs is not None and entries else None
    sound = (
        pairs is not None and _is_strict(decoded, len(pairs)) and _one_after_another(pairs) and _are_tensors(entries)
    )
    return Header(entries, end, sound)


_kept = functools.lru_cache(maxsize=4)(_parsed)  # a pipeline's files are looked at before any is opened, then each anew


def _offsets(entries: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Where the tensors begin and end, ``None`` if an entry says no such thing."""
    try:
        pairs = [(begin, end) for key, entry in entries.items() if key != METADATA for begin, end in (entry[OFFSETS],)]
    except (TypeError, KeyError, ValueError):
        return None
    return pairs if set(map(type, chain.from_iterable(pairs))) <= {int} else None


def _is_strict(text: str, tensors: int) -> bool:
    """Whether ``text`` has nothing that Python's parser takes and the library's does not: a key twice, say."""
    once = all(text.count(f'"{field}"') == tensors for field in FIELDS) and text.count(f'"{METADATA}"') <= 1
    return once and not NOT_STRICT.search(text)


def _one_after_another(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether the tensors follow each other from the first byte on."""
    pairs = sorted(pairs)
    return all(begin == before for (begin, _), (_, before) in zip(pairs, [(0, 0), *pairs], strict=False))


def _are_tensors(entries: Mapping[str, Any]) -> bool:
    """Whether each entry is of a tensor with as many bytes as its shape and dtype ask for, and the metadata texts."""
    try:
        return all(
            all(type(text) is str for text in entry.values()) if key == METADATA else _is_tensor(entry)
            for key, entry in entries.items()
        )
    except (TypeError, KeyError, AttributeError):
        return False


def _is_tensor(entry: Mapping[str, Any]) -> bool:
    (begin, end), shape = entry[OFFSETS], entry["shape"]
    if shape and not (set(map(type, shape)) == {int} and min(shape) >= 0 and max(shape) <= LARGEST):
        return False
    return len(entry) == len(FIELDS) and end - begin == math.prod(shape) * ELEMENT_BYTES[entry["dtype"]]
