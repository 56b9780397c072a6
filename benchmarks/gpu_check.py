"""Build, check and time every GPU kernel: ``python benchmarks/gpu_check.py --out results`` on a machine with a GPU.

Sections (`gpu_sections.py`) run one after the other, the most telling first, each in a process of its own that is ended
after its budget of seconds. The first compiles all kernels in parallel. Each result is appended at once, as a line, to
``OUT/results.jsonl``, so that a crash, or the end of a lease, loses what was running. At the end the project's targets
(`gpu_targets.py`) are judged from that file, and ``OUT/gpu_check.json`` has everything. The exit code is 1 when a check
fails, a section crashes or a target is not met.

A rented machine is bare and takes a small tree. ``--pack tree.tar.gz`` writes what has to travel (`TRAVELS`); there,
unpack it and run this file with torch 2.11, Triton 3.6, cuda-core, numba, transformers (which brings click) and
safetensors. Sections that need other packages say so and are left out. For the steps of whole networks and encoding
carry wheels: ``pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64
-d wheels diffusers importlib_metadata zipp pydantic pydantic_core annotated_types typing_inspection``, 9 MB, and there
``pip install --no-index --no-deps --target site wheels/*`` and ``PYTHONPATH=site``.

``--rehearse`` walks every section on a CPU, at toy sizes, with launches that are only counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gpu_sections import Section

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # on a rented machine the package is not installed
TRAVELS = ("vqcompress", "benchmarks", "LICENSE")
LEFT_OUT = {"__pycache__", ".ipynb_checkpoints"}
RESULTS = "results.jsonl"
LEAST = 5  # seconds in which a section can find anything
PATIENCE = 10  # times its budget that a section has in a rehearsal, on whatever CPU
FAULT = "GPU_CHECK_FAULT"  # of a section, which tests ask for: see `gpu_sections.run_section`


@click.command(help=__doc__)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("gpu_check"), show_default=True)
@click.option("--minutes", default=7.8, show_default=True, help="For all sections together.")
@click.option("--only", multiple=True, help="Sections by name [default: all].")
@click.option("--rehearse", is_flag=True, help="Toy sizes on a CPU, launches stubbed.")
@click.option("--pack", type=click.Path(dir_okay=False, path_type=Path), help="Write the files that travel, and stop.")
@click.option("--section", hidden=True)
def main(
    out: Path, minutes: float, only: tuple[str, ...], rehearse: bool, pack: Path | None, section: str | None
) -> None:
    if pack is not None:
        click.echo(f"{pack}: {packed_tree(pack)} files, {pack.stat().st_size / 1e6:.1f} MB")
        return
    out.mkdir(parents=True, exist_ok=True)
    if section is not None:
        _run_here(section, out / RESULTS, rehearse)
        return
    _require_gpu(rehearse)
    run = Run(out, rehearse, time.monotonic() + 60 * minutes)
    sys.exit(run.summary(run.sections(only)))


def packed_tree(path: Path) -> int:
    """Write what travels to ``path`` (tar.gz); the number of files."""
    count = 0
    with tarfile.open(path, "w:gz") as archive:
        for file in travelling():
            archive.add(file, str(file.relative_to(ROOT)), recursive=False)
            count += 1
    return count


def travelling() -> Iterator[Path]:
    """The files of `TRAVELS`, without caches."""
    for name in TRAVELS:
        top = ROOT / name
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and not LEFT_OUT & set(file.parts) and file.suffix not in (".nbi", ".nbc", ".pyc"):
                yield file


def _require_gpu(rehearse: bool) -> None:
    import torch

    if not rehearse and not torch.cuda.is_available():
        raise click.UsageError(
            "torch sees no GPU here; --rehearse walks the sections on a CPU, where tests/kernels holds the kernels"
        )


def _run_here(name: str, path: Path, rehearse: bool) -> None:
    """Run one section in this process and append what it finds."""
    from gpu_lab import Lab
    from gpu_sections import run_section

    before = time.perf_counter()
    for found, value in run_section(name, Lab(rehearse), os.environ.get(FAULT)):
        append(
            path, {"section": name, "name": found, "value": value, "seconds": round(time.perf_counter() - before, 3)}
        )
        print(f"{name}: {found}: {_short(value)}", flush=True)
        before = time.perf_counter()


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:300]


def append(path: Path, line: dict[str, Any]) -> None:
    """One result, on disk before the next begins."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far; a line that was cut off is none."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


@dataclass
class Run:
    """All sections of one call: where results go, and when it must be over (`time.monotonic`)."""

    out: Path
    rehearse: bool
    until: float

    def sections(self, only: tuple[str, ...]) -> dict[str, str]:
        """Section -> how it ended."""
        from gpu_sections import SECTIONS

        if unknown := set(only) - {section.name for section in SECTIONS}:
            raise click.UsageError(f"no section {', '.join(sorted(unknown))}; there are {[s.name for s in SECTIONS]}")
        (self.out / RESULTS).unlink(missing_ok=True)
        ended = {}
        for section in SECTIONS:
            if not only or section.name in only:
                ended[section.name] = how = self._how_it_ended(section)
                append(self.out / RESULTS, {"section": section.name, "name": "ended", "value": how})
                print(f"== {section.name}: {how}", flush=True)
        return ended

    def _how_it_ended(self, section: Section) -> str:
        if missing := section.missing():
            return f"left out: {', '.join(missing)} not installed"
        if (left := self.until - time.monotonic()) < LEAST:
            return "left out: no time left"
        budget = section.budget * (PATIENCE if self.rehearse else 1)
        return self._run(section.name, min(budget, left))

    def _run(self, name: str, seconds: float) -> str:
        command = [sys.executable, str(Path(__file__).resolve()), "--out", str(self.out), "--section", name]
        environment = dict(os.environ)
        if self.rehearse:
            command, environment = [*command, "--rehearse"], environment | {"TRITON_INTERPRET": "1"}
        paths = [str(ROOT), str(ROOT / "benchmarks"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        start = time.monotonic()
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # its workers too
            process.wait()
            return f"ended after its {seconds:.0f} s"
        took = f"{time.monotonic() - start:.1f} s"
        return f"done in {took}" if code == 0 else f"crashed with exit code {code} after {took}"

    def summary(self, ended: dict[str, str]) -> int:
        """Print and write what was found; the exit code."""
        from gpu_targets import judged

        results = by_section(read(self.out / RESULTS))
        checks = checks_of(results)
        failed = {name: value for name, value in checks.items() if value != "ok"}
        verdicts = judged(results)
        targets = [asdict(v) | {"target": v.target.name, "limit": v.target.limit, "met": v.met} for v in verdicts]
        text = {"ended": ended, "failed": failed, "targets": targets, "results": results}
        (self.out / "gpu_check.json").write_text(json.dumps(text, indent=1), encoding="utf-8")
        print(f"{len(checks) - len(failed)} checks passed, {len(failed)} failed: {', '.join(failed) or 'none'}")
        for verdict in verdicts:
            print(verdict)
        stopped = any(how.startswith(("crashed", "ended")) for how in ended.values())
        missed = not self.rehearse and any(verdict.met is False for verdict in verdicts)
        return int(bool(failed) or stopped or missed)


def by_section(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Section -> name -> result."""
    results: dict[str, dict[str, Any]] = {}
    for line in lines:
        results.setdefault(line["section"], {})[line["name"]] = line["value"]
    return results


def checks_of(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is "ok" or says what went wrong: every text but names."""
    return {
        f"{section}: {name}": value
        for section, found in results.items()
        for name, value in found.items()
        if isinstance(value, str) and name not in ("ended", "torch", "device")
    }


if __name__ == "__main__":
    main()
