"""Files of a folder that a stranger may have written: regular files only, names that stay inside, JSON with a limit.

A pipe blocks whoever opens it, a device never ends, a link may lead to either. Nothing here follows a link to anything
but a regular file, and nothing reads more than it was told to.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from vqcompress.errors import CheckpointError

JSON_LIMIT = 1 << 24
"""Bytes: a config of fifty thousand layers."""

TEXT_LIMIT = 1 << 27
"""Bytes of any other text that a library reads whole: a vocabulary of a million words, four times over."""
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".yaml", ".tiktoken")

HEADER_LIMIT = 100_000_000
"""Bytes: safetensors allows no longer header."""
LENGTH_BYTES = 8  # of a header's length, before it

PART_LIMIT, NAME_LIMIT = 255, 1024  # bytes of a part of a path, and of a whole relative path


def open_regular(path: Path) -> BufferedReader:
    """``path`` opened for reading. Raises `CheckpointError` for what cannot be opened or is no regular file."""
    try:
        # Without waiting: the other end of a pipe may never be opened.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError(f"{path} cannot be read: it is no regular file but a {_kind(path)}; remove it")
    return file


def regular_size(path: Path) -> int | None:
    """Bytes of a regular file, or of the one that a link leads to; ``None`` for anything else and for nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read_bytes(path: Path, limit: int) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes. Raises `CheckpointError` for any other."""
    with open_regular(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None
    if len(data) > limit:
        raise CheckpointError(f"{path} cannot be read: it has more than {limit} bytes")
    return data


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes. Raises `CheckpointError` when ``path`` does not hold one."""
    return json_object(read_bytes(path, limit), path)


def json_object(text: str | bytes, where: str | Path) -> dict[str, Any]:
    """The JSON object in ``text``, found at ``where``. Raises `CheckpointError` when there is none.

    Bytes are UTF-8, as the libraries read them; `json.loads` would take them for UTF-16 where they look like it.
    """
    try:
        data = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise CheckpointError(f"{where} cannot be read: its JSON is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{where} cannot be read: {_reason(error)}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} cannot be read: it does not hold a JSON object")
    return data


def name_problem(name: object) -> str | None:
    """Why ``name`` cannot name a file inside a folder, as a relative path with slashes, or ``None``."""
    if not isinstance(name, str) or not name:
        return f"{short_repr(name)} is no file name"
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return f"{short_repr(name)} is no text"
    if any(part in (b"", b".", b"..") for part in parts) or (os.name == "nt" and (":" in name or "\\" in name)):
        return f"{short_repr(name)} lies outside of the folder"
    if any(len(part) > PART_LIMIT for part in parts) or sum(map(len, parts)) + len(parts) > NAME_LIMIT:
        return f"{short_repr(name)} is too long for a file name"
    if "\0" in name:
        return f"{short_repr(name)} has a NUL in it"
    return None


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """``(relative path, entry)`` of everything below ``folder`` that is no folder itself, sorted within each folder.

    Links to folders are listed, not entered.
    """
    todo = [""]
    while todo:
        prefix = todo.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    todo.append(f"{name}/")
                else:
                    yield name, entry


def is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # a loop of links
        return False


def check_regular(folder: Path) -> None:
    """Raise `CheckpointError` that names the first entry below ``folder`` that no loader should open.

    That is what is neither a regular file nor a folder, a text too long to be read whole, and weights that do not begin
    with the length of a header: a loader maps them whole before it looks, and a hole of a terabyte is a short download.
    Links to folders count as folders, and hidden entries of the folder itself are left alone: no loader reads them.
    """
    for name, entry in walk(folder):
        if name.startswith("."):
            continue
        if not is_regular(entry) and not _is_folder(entry):
            raise CheckpointError(
                f"{folder / name} is no regular file but a {_kind(folder / name)}; it is not opened, remove it or "
                "download the folder again"
            )
        if name.endswith(TEXT_SUFFIXES) and (regular_size(folder / name) or 0) > TEXT_LIMIT:
            raise CheckpointError(
                f"{folder / name} has more than {TEXT_LIMIT} bytes, which no text of a pipeline has; it is not opened, "
                "download the folder again"
            )
        if name.endswith(".safetensors") and is_regular(entry):
            _check_header_length(folder / name)


def _check_header_length(path: Path) -> None:
    with open_regular(path) as file:
        begins, size = file.read(LENGTH_BYTES), os.fstat(file.fileno()).st_size
    length = int.from_bytes(begins, "little")
    if not 2 <= length <= min(HEADER_LIMIT, size - LENGTH_BYTES):
        what = "a Git LFS pointer" if begins == b"version " else f"{size} bytes without a header"
        raise CheckpointError(f"{path} holds no safetensors but {what}; it is not opened, download it again")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _kind(path: Path) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "link that leads nowhere"
    names = {stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "folder")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
