"""What a process must not do is noticed, and what it may do is not."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuzz.watch import Swap, Watch


def noticed(home: Path, work: Callable[[], object], swap: Swap | None = None) -> list[str]:
    """What a watch says of ``work``, in a process of its own: a hook stays."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said: list[str] = []
        try:
            watch = Watch(said.append)
            watch.install()
            watch.begin(home, home / "folder", swap)
            with suppress(Exception):
                work()
            watch.home = ""
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return json.loads(pipe.read())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home/folder").mkdir(parents=True)
    (tmp_path / "home/folder/evil.py").write_text("x = 1\n")
    return tmp_path / "home"


def run_file(path: Path) -> None:
    exec(compile(path.read_text(), str(path), "exec"), {})  # noqa: S102 - that is what must be noticed


def test_what_must_not_happen_is_noticed(home: Path, tmp_path: Path) -> None:
    for work, word in (
        (lambda: os.system("true"), "os.system"),
        (lambda: run_file(home / "folder/evil.py"), "runs"),
        (lambda: (tmp_path / "x").write_text("x"), "writes"),
        (lambda: (tmp_path / "d").mkdir(), "writes"),
        (lambda: (home / "../y").write_text("y"), "writes"),
        (lambda: socket.create_connection(("127.0.0.1", 9), timeout=0.1), "socket"),
    ):
        assert any(word in said for said in noticed(home, work)), word


def test_what_may_happen_is_not(home: Path) -> None:
    def work() -> None:
        (home / "folder/evil.py").read_text()
        (home / "out").write_text("x")
        (home / "new").mkdir()
        Path("/dev/null").write_text("x")

    assert noticed(home, work) == []


def test_a_file_is_swapped_when_it_is_opened_so_often(home: Path) -> None:
    path = home / "folder/evil.py"
    (home / "replacement").write_text("other")
    (home / "original").write_text("x = 1\n")
    swap = Swap(path, home / "replacement", 2)

    def work() -> None:
        (home / "first").write_text(path.read_text())
        (home / "second").write_text(path.read_text())

    assert noticed(home, work, swap) == []
    assert (home / "first").read_text() == "x = 1\n"
    assert (home / "second").read_text() == "other"
