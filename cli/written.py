"""What verbs say on stdout: lines that fit a terminal, and the last words of one that writes a file or folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import click

from vqcompress.component_files import bytes_below


def say(line: str, hang: int) -> None:
    """Print ``line``; in a terminal it goes on below, ``hang`` columns to the right, where it is too long for one."""
    if sys.stdout.isatty() and len(line) > (width := shutil.get_terminal_size().columns):
        start = line[: len(line) - len(line.lstrip())]
        line = click.wrap_text(line.strip(), width, initial_indent=start, subsequent_indent=" " * hang)
    click.echo(line)


def say_beside(name: str, text: str, hang: int) -> None:
    """Print ``text`` beside ``name``; in a terminal that is too narrow for both, below it, without columns."""
    if sys.stdout.isatty() and len(name) + 1 + len(text) > shutil.get_terminal_size().columns:
        click.echo(name.rstrip())
        say(" " * hang + " ".join(text.split()), hang)
    else:
        click.echo(f"{name} {text}")


def say_written(output: Path, text: str, as_json: bool) -> None:
    """``text`` after the path or, ``as_json``, the path and the bytes that lie there."""
    size = output.stat().st_size if output.is_file() else bytes_below(output)
    click.echo(json.dumps({"output": str(output), "bytes": size}) if as_json else f"{output}: {text}")
