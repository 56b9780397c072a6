"""A server of processes: imports once, then forks a child for each case, which may crash, hang or run out of memory."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.fuzz.cases import Case, Made, make
from tests.fuzz.operations import OPERATIONS, SOMETIMES, USES
from tests.fuzz.verdicts import faults, verdict

SECONDS = 20
"""Of one operation."""
SPARE = 64 << 20
"""Bytes beyond twice what the honest folder takes: what allocators keep, and what any small network may need."""


@dataclass
class Result:
    """A case, what was changed, operation -> kind and detail, and what of it is a fault."""

    seed: int
    index: int
    changes: tuple[str, ...]
    stale: bool
    kinds: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    growth: int = 0
    faults: list[str] = field(default_factory=list)


def run_cases(
    cases: list[Case], honest: Mapping[str, Path], seconds: float = SECONDS, limit: int | None = None
) -> Iterator[Result]:
    """Run ``cases`` one after the other. ``limit`` bytes of growth are allowed; by default it is measured first."""
    _warm_up(honest)
    allowed = 2 * _honest_growth(honest, seconds) + SPARE if limit is None else limit
    for case in cases:
        home = Path(mkdtemp(prefix="vqcompress-fuzz-"))
        try:
            made = make(case, honest, home)
            yield _run(case, made, home, seconds, allowed)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _warm_up(honest: Mapping[str, Path]) -> None:
    """Do everything once in this process, so that no child has to compile a loop or import a module."""
    for path in honest.values():
        home = Path(mkdtemp(prefix="vqcompress-fuzz-"))
        for name, operation in OPERATIONS.items():
            (home / name).mkdir()
            operation(path, home / name)
        shutil.rmtree(home)


def _honest_growth(honest: Mapping[str, Path], seconds: float) -> int:
    """Bytes by which a process grows that does everything with an honest folder."""
    most = 0
    for path in honest.values():
        home = Path(mkdtemp(prefix="vqcompress-fuzz-"))
        copy = home / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
        result = _run(Case(0, 0), Made(copy, (), False), home, 10 * seconds, 1 << 40)
        shutil.rmtree(home)
        wrong = {name: kind for name, kind in result.kinds.items() if kind != "ok"}
        assert not wrong, f"{path} is honest, but: {wrong} {result.details}"
        most = max(most, result.growth)
    return most


def _run(case: Case, made: Made, home: Path, seconds: float, allowed: int) -> Result:
    result = Result(case.seed, case.index, made.changes, made.stale)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(case.index, made, home, writing, allowed)
    os.close(writing)
    _follow(child, reading, result, seconds)
    os.close(reading)
    if result.growth > allowed:
        result.kinds["memory"] = "memory"
        result.details["memory"] = f"grew by {result.growth} bytes, {allowed} are allowed"
    result.faults = faults(result.kinds, made.stale, USES)
    return result


def _follow(child: int, reading: int, result: Result, seconds: float) -> None:
    """Read what the child reports until it ends, and end it where an operation takes too long."""
    left, running = b"", ""
    ended_by_us = False
    while True:
        ready, _, _ = select.select([reading], [], [], seconds)
        if not ready:
            ended_by_us = True
            os.kill(child, signal.SIGKILL)
            break
        data = os.read(reading, 1 << 16)
        if not data:
            break
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            running = _note(json.loads(line), result, running)
    _, status = os.waitpid(child, 0)
    if ended_by_us:
        result.kinds[running], result.details[running] = "hang", f"more than {seconds} s"
    elif os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status)).name
        result.kinds[running], result.details[running] = "crash", number
    elif os.WEXITSTATUS(status):
        result.kinds[running], result.details[running] = "crash", f"exit code {os.WEXITSTATUS(status)}"


def _note(said: dict[str, Any], result: Result, running: str) -> str:
    if "begins" in said:
        return said["begins"]
    if "growth" in said:
        result.growth = said["growth"]
        return running
    result.kinds[running] = said["kind"]
    if said["detail"]:
        result.details[running] = said["detail"]
    return ""


def _work(index: int, made: Made, home: Path, writing: int, allowed: int) -> None:
    """The child: every operation in turn; never returns."""
    code = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silence, number)
        tempfile.tempdir = str(home)
        before = _memory("VmRSS")
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        room = _memory("VmSize") + max(allowed, 1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (min(room, 1 << 40), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for name, operation in OPERATIONS.items():
            if name in SOMETIMES and index % 3:
                continue
            _say(writing, {"begins": name})
            _say(writing, _outcome(name, operation, made, home))
            _say(writing, {"growth": _memory("VmHWM") - before})
        code = 0
    finally:
        os._exit(code)


def _outcome(name: str, operation: Any, made: Made, home: Path) -> dict[str, str]:
    own = home / name.replace(" ", "-")
    own.mkdir()
    try:
        operation(made.path, own)
    except Exception as error:  # noqa: BLE001 - what it is decides what is said of it
        kind, detail = verdict(name, error)
        return {"kind": kind, "detail": detail}
    return {"kind": "ok", "detail": ""}


def _say(writing: int, what: dict[str, Any]) -> None:
    os.write(writing, json.dumps(what).encode() + b"\n")


def _memory(name: str) -> int:
    """Bytes of this process by the kernel's account."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def to_line(result: Result) -> str:
    """A result as a line of JSON."""
    return json.dumps(asdict(result))


def timed(results: Iterator[Result]) -> Iterator[tuple[Result, float]]:
    """Each result with the seconds it took."""
    start = time.perf_counter()
    for result in results:
        now = time.perf_counter()
        yield result, now - start
        start = now
