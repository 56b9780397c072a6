"""What a process does that opening a folder never needs: run its code, leave its place, call the network."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEVER = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "socket.connect", "socket.getaddrinfo", "ctypes.dlopen",
)  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Swap:
    """A file ``path`` of the folder that ``other`` takes the place of while the folder is open, at the ``at``-th time
    that Python opens a file of it."""

    path: Path
    other: Path
    at: int


class Watch:
    """Audits this process from `install` on; ``home`` is where it may write, ``said`` gets what it must not do."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self.said, self.home, self.folder = said, "", ""
        self.swap: Swap | None = None
        self.opened = 0
        self.inside = False

    def install(self) -> None:
        """Once a process: a hook stays."""
        sys.addaudithook(self)

    def begin(self, home: Path, folder: Path, swap: Swap | None) -> None:
        """Of an operation. What another has swapped comes back."""
        self.home, self.folder, self.swap, self.opened = str(home), str(folder), swap, 0
        tempfile.tempdir = self.home
        if swap is not None:
            _put(swap.other.with_name("original"), swap.path)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook."""
        if self.inside or not self.home:
            return
        self.inside = True
        try:
            self._look(event, arguments)
        finally:
            self.inside = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in NEVER and not _is_at_compiled_loops():
            self.said(f"{event} {arguments!r:.100}")
        elif event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(self.home):
            self.said(f"runs {arguments[0].co_filename}")
        elif event == "open" and not isinstance(arguments[0], int):
            self._look_at_file(os.fsdecode(arguments[0]), bool((arguments[2] or 0) & WRITING))
        elif event in CHANGES and not isinstance(arguments[0], int) and arguments[-1] in (-1, None):
            # Relative to a folder that is open, as `shutil.rmtree` does it, is within one that was looked at.
            self._look_at_file(os.fsdecode(arguments[0]), True)

    def _look_at_file(self, path: str, writes: bool) -> None:
        if writes and not os.path.realpath(os.path.dirname(os.path.abspath(path))).startswith((self.home, "/dev/null")):
            if path not in ("/dev/null", os.devnull) and not _is_at_compiled_loops():
                self.said(f"writes {path[:200]}")
        elif path.startswith(self.folder):
            self.opened += 1
            if self.swap is not None and self.opened == self.swap.at:
                _put(self.swap.other, self.swap.path)


def _is_at_compiled_loops() -> bool:
    """Whether numba is at the loops that it has compiled, which it keeps beside their sources, as pickles."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("numba/core/caching.py"):
            return True
        frame = frame.f_back
    return False


def _put(source: Path, path: Path) -> None:
    copy = source.with_name(f"{source.name}.copy")
    copy.write_bytes(source.read_bytes())
    os.replace(copy, path)
