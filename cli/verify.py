"""`vqcompress verify DIR`"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vqcompress.cli.progress import silence_other_bars
from vqcompress.errors import CheckpointError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(min=0), help="Give up after this time. [default: as its size needs]")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def verify(folder: Path, seconds: float | None, as_json: bool) -> None:
    """Check a compressed FOLDER or bundle: the SHA-256 of every file, and the shape and values of every tensor.

    The exit code is 0 without problems and 2 with any.
    """
    from vqcompress.checkpoint import verify as check

    silence_other_bars()
    problems = check(folder, seconds)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "problems": problems}))
        raise SystemExit(2 if problems else 0)
    if problems:
        more = f" (and {len(problems) - 1} more problems, see --json)" if len(problems) > 1 else ""
        raise CheckpointError(f"{folder}: {problems[0]}{more}")
    from vqcompress.bundling import read_bundle

    alone = folder.is_file() and read_bundle(folder) is None
    sound = "header and numbers are sound (no bundle, so there is no manifest)" if alone else None
    click.echo(f"{folder}: {sound or 'all files and tensors match the manifest'}")
