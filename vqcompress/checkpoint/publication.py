"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vqcompress.disk import exchange, held, is_held, sync_folder, sync_tree, write_problem
from vqcompress.errors import CheckpointError

PARTIAL, OLD = ".partial", ".old.partial"


def check_name(folder: Path) -> None:
    """Raise `CheckpointError` for a path that no other can lie beside, such as the root or an empty one."""
    if not folder.name:
        raise CheckpointError(
            f"{folder} cannot be replaced; name a folder of its own to write to, such as out/sdxl-vq3"
        )


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise `CheckpointError` when ``folder`` may not be written."""
    check_name(folder)
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

    The final step is one rename, so a reader never sees a half-written folder; after an error nothing is left. All
    files get the mode that the umask gives to new ones: safetensors would keep weights from everybody else. Raises
    `CheckpointError` if the disk is full, read-only or otherwise refuses.
    """
    with naming_disk_problems(folder):
        check_target(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(folder)
        partial = folder.parent / f".{folder.name}.{os.getpid()}{PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with held(partial):
                yield partial
                share_modes(partial)
                sync_tree(partial)
                _replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def naming_disk_problems(target: Path) -> Iterator[None]:
    """Raise `CheckpointError` with one sentence for what the disk refuses in the block."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (problem := write_problem(error)) is None:
            raise
        raise CheckpointError(
            f"{target} cannot be written: {problem}, then run the same command again; what was finished is kept"
        ) from error


def remove_stale_partials(folder: Path) -> None:
    """Remove half-written folders that a killed process left beside ``folder``; restore one that was being replaced."""
    for left in folder.parent.glob(f".{folder.name}.*{PARTIAL}"):
        process, *old = left.name.removeprefix(f".{folder.name}.").removesuffix(PARTIAL).split(".")
        if not process.isdecimal() or _is_in_use(left, int(process)):
            continue
        if old == ["old"] and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_in_use(partial: Path, process: int) -> bool:
    """The lock decides, which no other process can inherit with a number; without locks, the number."""
    held_by_any = is_held(partial)
    return _is_alive(process) if held_by_any is None else held_by_any


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def share_modes(folder: Path) -> None:
    """Give every file below ``folder`` the mode that new files have here, read off the folder's own."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _replace(partial: Path, folder: Path) -> None:
    """Put ``partial`` in the place of ``folder``: one rename, also where the two must exchange their names."""
    if not folder.exists() or not exchange(partial, folder):
        _replace_in_two_steps(partial, folder)
    sync_folder(folder.parent)


def _replace_in_two_steps(partial: Path, folder: Path) -> None:
    """A kill between the two leaves ``folder`` under another name; `remove_stale_partials` restores it."""
    old = folder.parent / f".{folder.name}.{os.getpid()}{OLD}"
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
