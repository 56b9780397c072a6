"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqcompress.errors import CheckpointError


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise `CheckpointError` when ``folder`` may not be written."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; name a folder to write to")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(
            f"{folder} exists; name another folder, or pass overwrite=True (--overwrite) to replace it"
        )
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is not empty and no pipeline, so it is not replaced; name another folder")


@contextmanager
def publish(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A fresh folder beside ``folder`` to write into; it takes ``folder``'s place when the block ends without error.

    The final step is one rename, so a reader never sees a half-written folder; after an error nothing is left.
    """
    check_target(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_partials(folder)
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale_partials(folder: Path) -> None:
    """Remove half-written folders that a killed process left beside ``folder``; restore one that was being replaced."""
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        process, *old = left.name.removeprefix(f".{folder.name}.").removesuffix(".partial").split(".")
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if old == ["old"] and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _replace(partial: Path, folder: Path) -> None:
    old = folder.parent / f".{folder.name}.{os.getpid()}.old.partial"
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
