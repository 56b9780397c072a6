"""The manifest: length and SHA-256 of every file of a folder, so that an altered one is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vqcompress.errors import CheckpointError

MANIFEST_NAME = "vqcompress_manifest.json"


def write_manifest(folder: Path) -> None:
    """Record every file below ``folder``: ``{relative path: {"sha256": hex, "bytes": length}}``."""
    entries = {name: _entry(folder / name) for name in _files(folder)}
    (folder / MANIFEST_NAME).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, dict]:
    """The manifest of ``folder``. Raises `CheckpointError` when there is none or it cannot be read."""
    path = folder / MANIFEST_NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])} for name, entry in entries.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}; it is no folder that vqcompress wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy or download the folder again") from None


def manifest_problems(folder: Path) -> list[str]:
    """One line per file that is missing, altered, or not listed although it holds weights."""
    entries = read_manifest(folder)
    problems = [problem for name, entry in sorted(entries.items()) if (problem := _problem(folder, name, entry))]
    unlisted = [name for name in _files(folder) if name not in entries and name.endswith((".safetensors", ".bin"))]
    return problems + [f"{name}: is not in the manifest" for name in unlisted]


def _problem(folder: Path, name: str, entry: dict) -> str | None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{name}: lies outside of the folder"
    if not path.is_file():
        return f"{name}: is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{name}: has {path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    return None if _sha256(path) == entry["sha256"] else f"{name}: has other contents than the manifest says (SHA-256)"


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != MANIFEST_NAME)


def _entry(path: Path) -> dict:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
