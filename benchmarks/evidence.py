"""Renew published results: run their commands, write each document from what they print, and stamp it.

``python benchmarks/evidence.py`` (or ``make evidence``) runs every result of `published`, ``evidence.py NAME…`` those,
``--list`` names them with their commands. A document ``docs/results/NAME.md`` is written from the numbers in
``NAME.json`` beside it and from nothing else; that file also holds the stamp: commands, version and commit, machine,
date and seconds. A table also goes wherever other documents show it, between ``<!-- NAME: begin -->`` and ``end``.
``tests/reports/test_evidence.py`` renders every stamped document again and compares.

Formats of packages in environments of their own are compared where the environment variables of `vqcompress.peers`
name them; a report says which ones were not there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import click

from published import TABLE, Result
from vqcompress.reports import Comparison, to_markdown
from vqcompress.reports.machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Stamp:
    """Where numbers come from."""

    commands: tuple[str, ...]
    version: str
    commit: str
    machine: str
    date: str
    seconds: int


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="Only name the results and their commands.")
@click.option("--made", is_flag=True, help="The commands have run: write documents and stamps from what is in out/.")
def main(names: tuple[str, ...], listed: bool, made: bool) -> None:
    known = {result.name: result for result in TABLE}
    if unknown := [name for name in names if name not in known]:
        raise click.ClickException(f"no result is called {unknown[0]!r}; there are {', '.join(known)}")
    for result in [known[name] for name in names] or TABLE:
        if listed:
            click.echo("\n  ".join([result.name, *result.commands]))
        else:
            renew(result, run=not made)


def renew(result: Result, *, run: bool = True, folder: Path = RESULTS, documents: Path = ROOT / "docs") -> None:
    """Run the commands and write document, numbers and stamp into ``folder``, and a table into whichever ``documents``
    show it. Nothing is written if a command fails."""
    start = time.monotonic()
    if run and result.starts_without:
        shutil.rmtree(ROOT / result.starts_without, ignore_errors=True)
    printed = [run_command(command) for command in result.commands] if run else [""]
    stamp = Stamp(
        commands=result.commands,
        version=version("vqcompress"),
        commit=_git("rev-parse", "HEAD")[:12],
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(time.monotonic() - start),
    )
    if result.report:
        numbers: dict[str, Any] = {"report": json.loads((ROOT / result.report).read_text(encoding="utf-8"))}
        grid = (ROOT / result.report).with_name("grid.png")
        if grid.is_file():
            (folder / f"{result.name}.png").write_bytes(grid.read_bytes())
    else:
        numbers = {"table": printed[-1], "about": result.about}
    stamped = json.loads(json.dumps({"stamp": asdict(stamp), **numbers}))
    (folder / f"{result.name}.json").write_text(json.dumps(stamped, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / f"{result.name}.md").write_text(render(result.name, stamped), "utf-8")
    if "table" in stamped:
        for document in sorted(documents.rglob("*.md")):
            text = document.read_text(encoding="utf-8")
            if (renewed := with_table(text, result.name, stamped["table"])) != text:
                document.write_text(renewed, encoding="utf-8")


def with_table(document: str, name: str, table: str) -> str:
    """The document with ``table`` where it shows the result ``name``, between comments that say so."""
    shown = re.compile(rf"(?<=<!-- {re.escape(name)}: begin -->\n).*?(?=<!-- {re.escape(name)}: end -->)", re.DOTALL)
    return shown.sub(lambda _: f"{table.strip()}\n", document)


def render(name: str, stamped: dict[str, Any]) -> str:
    """The document of a stamped result."""
    stamp = stamped["stamp"]
    commands = "\n".join(stamp["commands"])
    head = (
        f"Made on {stamp['date']} with vqcompress {stamp['version']} ({stamp['commit']}) on {stamp['machine']} by "
        f"`python benchmarks/evidence.py {name}`, which runs\n\n```sh\n{commands}\n```\n"
    )
    if "table" in stamped:
        about = f"{stamped['about']}\n\n" if stamped.get("about") else ""
        return f"# {name}\n\n{head}\n{about}{stamped['table'].strip()}\n"
    title, _, body = to_markdown(Comparison.from_json(stamped["report"])).partition("\n")
    picture = f"![images of the original and of each variant, from the same seeds]({name}.png)\n\n"
    there = (RESULTS / f"{name}.png").is_file()
    return f"{title}\n\n{head}{body}\n{picture if there else ''}".rstrip() + "\n"


def run_command(command: str) -> str:
    """What a command prints; it runs with this interpreter's programs. Raises `click.ClickException` if it fails."""
    click.echo(command, err=True)
    words = shlex.split(command)
    environment = dict(takewhile(lambda pair: len(pair) == 2, (word.split("=", 1) for word in words)))
    words = words[len(environment) :]
    here = Path(sys.executable).parent
    program = sys.executable if words[0] == "python" else str(here / words[0])
    done = subprocess.run(
        [program if words[0] != "make" else "make", *words[1:]],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        raise click.ClickException(f"{command} ended with {done.returncode}; nothing of this result was written")
    return done.stdout.decode()


def _git(*arguments: str) -> str:
    asked = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "no commit"


if __name__ == "__main__":
    main()
