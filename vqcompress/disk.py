"""The disk under a result: what may go wrong with it in one sentence, and steps that happen whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

_PROBLEMS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "a file would be larger than this process or file system may write; raise that limit (ulimit -f)",
    errno.EROFS: "the file system is read-only; choose a place that can be written",
    errno.EACCES: "permission is denied; make the folder writable",
    errno.EPERM: "the operation is not permitted there; make the folder writable",
    errno.EIO: "the disk reports an error; check it",
    errno.EMFILE: "too many files are open; raise that limit (ulimit -n)",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.ELOOP: "the path has a loop of symbolic links; choose another place",
}
TEMPORARY = ".tmp"
"""How names of files end that `replace_file` has not renamed yet."""
_WRITTEN_AT_ONCE = 1 << 24
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def write_problem(error: BaseException) -> str | None:
    """What is wrong with the disk and what to do about it, or None if ``error`` is about something else.

    safetensors and tokenizers, which write in Rust, name the system's error number only in their message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (named := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(named[1])
    return _PROBLEMS.get(number) if number is not None else None


def check_file_target(path: Path) -> None:
    """Raise `OSError` if no file can be written at ``path``: before long work, not after it. Nothing is left there."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file in it", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}; make it first", str(path))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "it may not be written; choose another place", str(path))


def check_folder_target(path: Path) -> None:
    """Raise `OSError` if files cannot be written into a folder ``path``, which is made if need be. Nothing is made."""
    there = path
    while not there.exists() and there.parent != there:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file; name a folder", str(path))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, "it may not be written; choose another place", str(path))


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write under ``folder``, or where it will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class FileMemory:
    """Memory for tensors of ``nbytes`` in all, in a file in ``folder`` that has no name and ends with the last of them.

    The system moves them to the disk where memory is short. Raises `OSError` if the disk has no room.
    """

    ALIGNMENT = 64  # bytes: what each tensor may take beyond its own

    def __init__(self, nbytes: int, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # or a page that finds no room later would end the process
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                for start in range(0, nbytes, _WRITTEN_AT_ONCE):
                    file.write(bytes(min(_WRITTEN_AT_ONCE, nbytes - start)))
                file.flush()
            self._free = torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=torch.uint8)

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``, of any shape and dtype, in the next free part."""
        place = self._free[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._free = self._free[-(-tensor.nbytes // self.ALIGNMENT) * self.ALIGNMENT :]
        return place.copy_(tensor)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Mark ``folder`` as in use by this process, until the block ends or the process dies (`is_held`)."""
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            _try_lock(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_held(folder: Path) -> bool | None:
    """Whether a living process holds ``folder``; None where the file system cannot tell."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        taken = _try_lock(handle)
    finally:
        os.close(handle)
    return None if taken is None else not taken


def _try_lock(handle: int) -> bool | None:
    """Whether the lock was free; None where the file system has no locks on folders."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def exchange(one: Path, other: Path) -> bool:
    """Let two folders exchange names in one step. False, and nothing happened, where the system cannot do that."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    return rename is not None and not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


def write_with_umask(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill the new file ``path``. It gets the mode that the umask gives to new files.

    safetensors writes through a temporary file, which is readable to its owner only.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode & 0o777
    write(path)
    path.chmod(mode)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, sync and rename it. ``path`` is then complete and on disk, or as it was.

    A process that is killed meanwhile leaves the temporary file, ``path`` and `TEMPORARY`.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write_with_umask(temporary, write)
        sync(temporary, os.O_RDWR)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Bring every file and folder below ``folder``, and itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            sync(path)
        elif path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk. Only on POSIX, because other systems cannot open folders."""
    if os.name == "posix":
        sync(folder)


def sync(path: Path, mode: int = os.O_RDONLY) -> None:
    """Bring one file to the disk."""
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
