"""The manifest: length and SHA-256 of every file of a folder, so that an altered one is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqcompress.bundling import Bundle, bundle_digest
from vqcompress.component_files import MANIFEST_NAME
from vqcompress.errors import CheckpointError
from vqcompress.folder_files import (
    StrPath,
    is_regular,
    json_object,
    name_problem,
    open_regular,
    read_json,
    regular_size,
    walk,
)
from vqcompress.openable import LARGE
from vqcompress.safetensors_header import stored_header
from vqcompress.time_limit import check_time

UNREAD_SUFFIXES = (".md", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".html", ".pdf")
"""What no loader reads: such a file may lie unlisted in the folder itself, as may hidden ones."""
OTHER_LIMIT = 1 << 30
"""Bytes of a file that holds no weights, such as a picture."""
BLOCK = 1 << 22
"""Bytes that are read at a time."""


def write_manifest(folder: Path) -> None:
    """Record every file below ``folder``: ``{relative path: {"sha256": hex, "bytes": length}}``."""
    names = sorted(name for name, entry in walk(folder) if is_regular(entry) and name != MANIFEST_NAME)
    entries = {name: _entry(folder / name) for name in names}
    (folder / MANIFEST_NAME).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, dict]:
    """The manifest of ``folder``. Raises `CheckpointError` when there is none or it cannot be read."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}; it is no folder that vqcompress wrote")
    return checked_manifest(read_json(path), path)


def checked_manifest(data: Mapping[str, Any], where: StrPath) -> dict[str, dict]:
    """The entries of a manifest, found at ``where``. Raises `CheckpointError` unless each has a hash and a length."""
    for name, entry in data.items():
        problem = name_problem(name) or (None if _is_entry(entry) else f"its entry for {name!r} is no hash and length")
        if problem:
            raise CheckpointError(f"{where} cannot be read ({problem}); copy or download the folder again")
    return dict(data)


def manifest_problems(folder: Path) -> list[str]:
    """One line per file that is missing, altered, or not listed although a loader may read it."""
    entries = read_manifest(folder)
    problems = [problem for name, entry in sorted(entries.items()) if (problem := _problem(folder, name, entry))]
    return problems + [f"{name}: is not in the manifest" for name in _unlisted(folder, entries)]


def bundle_problems(bundle: Bundle) -> list[str]:
    """As `manifest_problems`, for the files in a bundle; nothing is extracted."""
    text, where = bundle.texts.get(MANIFEST_NAME), f"{MANIFEST_NAME} in {bundle.path}"
    if text is None:
        raise CheckpointError(f"{bundle.path} has no {MANIFEST_NAME}; its folder is none that vqcompress wrote")
    entries = checked_manifest(json_object(text, where), where)
    found = {name: bundle_digest(bundle, name) for name in bundle.names if name in entries}
    problems = [_difference(name, entry, found.get(name)) for name, entry in sorted(entries.items())]
    unlisted = [name for name in bundle.names if name not in entries and _may_be_read(name)]
    return [problem for problem in problems if problem] + [f"{name}: is not in the manifest" for name in unlisted]


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"sha256", "bytes"}:
        return False
    length, digest = entry["bytes"], entry["sha256"]
    return type(length) is int and length >= 0 and isinstance(digest, str) and len(digest) == 64


def _problem(folder: Path, name: str, entry: dict) -> str | None:
    size = regular_size(folder / name)
    if size is None:
        return _difference(name, entry, None)
    if size == entry["bytes"] and (problem := _length_problem(folder / name, size)):
        return f"{name}: {problem}"
    return _difference(name, entry, (size, _sha256(folder / name) if size == entry["bytes"] else ""))


def _length_problem(path: Path, size: int) -> str | None:
    """Why a file of ``size`` bytes is not worth reading to its end, or ``None``: most of it may be a hole."""
    if path.suffix != ".safetensors":
        return f"has {size} bytes, more than {OTHER_LIMIT}, and is no weight file" if size > OTHER_LIMIT else None
    said = stored_header(path)[1] if size > LARGE else size
    return None if said == size else f"has {size} bytes, its header says {said}"


def _difference(name: str, entry: dict, found: tuple[int, str] | None) -> str | None:
    if found is None:
        return f"{name}: is missing"
    size, digest = found
    if size != entry["bytes"]:
        return f"{name}: has {size} bytes, the manifest says {entry['bytes']}"
    return None if digest == entry["sha256"] else f"{name}: has other contents than the manifest says (SHA-256)"


def _unlisted(folder: Path, entries: Mapping[str, dict]) -> list[str]:
    """Files and links that are not in the manifest and that a loader may read."""
    return sorted(name for name, _ in walk(folder) if name not in entries and _may_be_read(name))


def _may_be_read(name: str) -> bool:
    hidden = name.startswith(".")
    return not (hidden or name == MANIFEST_NAME or ("/" not in name and name.lower().endswith(UNREAD_SUFFIXES)))


def _entry(path: Path) -> dict:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            check_time()
            digest.update(block)
    return digest.hexdigest()
