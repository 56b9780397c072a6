"""Files of a folder that a stranger may have written: regular files only, names that stay inside, JSON with a limit.

A pipe blocks whoever opens it, a device never ends, a link may lead to either. Nothing here follows a link to anything
but a regular file, and nothing reads more than it was told to.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, BinaryIO, TypeAlias

from vqcompress.errors import CheckpointError

StrPath: TypeAlias = str | os.PathLike[str]
"""What names a file or folder: a text, a `Path`, or a folder that `quantize` has returned."""
JSON_LIMIT = 1 << 24
"""Bytes: a config of fifty thousand layers."""

PART_LIMIT, NAME_LIMIT = 255, 1024  # bytes of a part of a path, and of a whole relative path


def open_regular(path: Path) -> BinaryIO:
    """``path`` opened for reading. Raises `CheckpointError` for what cannot be opened or is no regular file.

    Whatever reads from it raises `CheckpointError` too, where the disk or the network refuses.
    """
    try:
        file = BufferedReader(_Reader(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError(f"{path} cannot be read: it is no regular file but a {kind_of(path)}; remove it")
    return file


class _Reader(FileIO):
    def __init__(self, path: Path) -> None:
        # Without waiting: the other end of a pipe may never be opened.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        super().__init__(os.open(path, flags), "rb")
        self.path = path

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {_reason(error)}") from None

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {_reason(error)}") from None


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
        data = file.read(limit + 1)
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
    if _has_escaped(text, "\\ud") and not _is_text(data):
        raise CheckpointError(f"{where} cannot be read: it holds half of a surrogate pair, which no text has")
    return data


def _has_escaped(text: str | bytes, escape: str) -> bool:
    return escape in text.lower() if isinstance(text, str) else escape.encode() in text.lower()


def _is_text(data: object) -> bool:
    """Whether all strings in it can be written in UTF-8."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


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


def kind_of(path: Path) -> str:
    """What ``path`` is that is no regular file, in a word or a few."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "link that leads nowhere"
    names = {stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "folder")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
