"""A server of processes: imports once, then forks a child for a few cases, which may crash, hang or run out of memory.

A case with a fault is run again alone, and counts with what it did in either process.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.fuzz.cases import Case, Made, make
from tests.fuzz.guarded import forget
from tests.fuzz.operations import OPERATIONS, USES
from tests.fuzz.verdicts import faults, verdict
from tests.fuzz.watch import Watch

SECONDS = 20
"""Of one operation."""
TOGETHER = 16
"""Cases of a process, unless one of them ends it."""
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
    todo = list(cases)
    while todo:
        together, todo = todo[:TOGETHER], todo[TOGETHER:]
        homes = [Path(mkdtemp(prefix="vqcompress-fuzz-")) for _ in together]
        try:
            made = [make(case, honest, home) for case, home in zip(together, homes, strict=True)]
            for case, home, result in zip(
                together, homes, _run_all(together, made, homes, seconds, allowed), strict=True
            ):
                yield _again(case, honest, home, seconds, allowed, result) if result.faults else result
        finally:
            for home in homes:
                shutil.rmtree(home, ignore_errors=True)


def _run_all(cases: list[Case], made: list[Made], homes: list[Path], seconds: float, allowed: int) -> list[Result]:
    """In one process, or in another from the case on that ended it."""
    results: list[Result] = []
    while len(results) < len(cases):
        done = len(results)
        results += _run(cases[done:], made[done:], homes[done:], seconds, allowed)
    return results


def _again(case: Case, honest: Mapping[str, Path], home: Path, seconds: float, allowed: int, first: Result) -> Result:
    """A case alone, after it had a fault among others. Only memory may be theirs."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (result,) = _run([case], [make(case, honest, home)], [home], seconds, allowed)
    alone = [f"{fault} (only after other cases)" for fault in first.faults if fault not in result.faults]
    result.faults += [fault for fault in alone if not fault.startswith("memory in memory")]
    return result


def _warm_up(honest: Mapping[str, Path]) -> None:
    """Do everything once in this process, so that no child has to compile a loop or import a module."""
    for path in honest.values():
        home = Path(mkdtemp(prefix="vqcompress-fuzz-"))
        for name, operation in OPERATIONS.items():
            (home / name).mkdir()
            operation(path, home / name)
        shutil.rmtree(home)
    gc.collect()
    gc.freeze()  # so that no child's collection touches, and copies, what it shares with this process


def _honest_growth(honest: Mapping[str, Path], seconds: float) -> int:
    """Bytes by which a process grows that does everything with an honest folder."""
    most = 0
    for path in honest.values():
        home = Path(mkdtemp(prefix="vqcompress-fuzz-"))
        copy = home / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
        (result,) = _run([Case(0, 0)], [Made(copy, (), False)], [home], 10 * seconds, 1 << 40)
        shutil.rmtree(home)
        wrong = {name: kind for name, kind in result.kinds.items() if kind != "ok"}
        assert not wrong, f"{path} is honest, but: {wrong} {result.details}"
        most = max(most, result.growth)
    return most


def _run(cases: list[Case], made: list[Made], homes: list[Path], seconds: float, allowed: int) -> list[Result]:
    """Results of the first cases, up to one that ended the process."""
    results = [Result(case.seed, case.index, one.changes, one.stale) for case, one in zip(cases, made, strict=True)]
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(made, homes, writing, allowed)
    os.close(writing)
    results = _follow(child, reading, results, seconds)
    os.close(reading)
    for result, one in zip(results, made, strict=False):
        if result.growth > allowed:
            result.kinds["memory"] = "memory"
            result.details["memory"] = f"grew by {result.growth} bytes, {allowed} are allowed"
        result.faults = faults(result.kinds, one.stale, () if one.swap else USES)
    return results


def _follow(child: int, reading: int, results: list[Result], seconds: float) -> list[Result]:
    """Read what the child reports until it ends, and end it where an operation takes too long; the cases it came to."""
    left, running, number = b"", "", 0
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
            said = json.loads(line)
            number = said.get("case", number)
            running = _note(said, results[number], running)
    _, status = os.waitpid(child, 0)
    last = results[number]
    if ended_by_us:
        last.kinds[running], last.details[running] = "hang", f"more than {seconds} s"
    elif os.WIFSIGNALED(status):
        last.kinds[running], last.details[running] = "crash", signal.Signals(os.WTERMSIG(status)).name
    elif os.WEXITSTATUS(status):
        last.kinds[running], last.details[running] = "crash", f"exit code {os.WEXITSTATUS(status)}"
    return results[: number + 1]


def _note(said: dict[str, Any], result: Result, running: str) -> str:
    if "begins" in said:
        return said["begins"]
    if "case" in said:
        return ""
    if "escape" in said:
        result.kinds[f"escape in {running}"] = "escape"
        result.details[f"escape in {running}"] = said["escape"]
        return running
    if "growth" in said:
        result.growth = said["growth"]
        return running
    result.kinds[running] = said["kind"]
    if said["detail"]:
        result.details[running] = said["detail"]
    return ""


def _work(made: list[Made], homes: list[Path], writing: int, allowed: int) -> None:
    """The child: every operation with every folder in turn; never returns."""
    code = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silence, number)
        watch = Watch(lambda what: _say(writing, {"escape": what}))
        watch.install()
        before = _memory("VmRSS")
        room = _memory("VmSize") + max(allowed, 1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (min(room, 1 << 40), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, (one, home) in enumerate(zip(made, homes, strict=True)):
            _say(writing, {"case": number})
            watch.home = ""
            with open("/proc/self/clear_refs", "w") as peak:
                peak.write("5")
            for name, operation in OPERATIONS.items():
                _say(writing, {"begins": name})
                watch.begin(home, one.path, one.swap)
                _say(writing, _outcome(name, operation, one, home))
                forget()
            _say(writing, {"growth": _memory("VmHWM") - before})
        code = 0
    finally:
        os._exit(code)


def _outcome(name: str, operation: Any, made: Made, home: Path) -> dict[str, str]:
    own = home / name.replace(" ", "-")
    own.mkdir()
    try:
        operation(made.path, own)
    except BaseException as error:  # noqa: BLE001 - what it is decides what is said of it
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
