"""`vqcompress verify DIR`"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vqcompress.errors import CheckpointError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of the problems.")
def verify(folder: Path, as_json: bool) -> None:
    """Check FOLDER: every file against the manifest's SHA-256, every tensor's shape, range and finiteness.

    Leaves with exit code 0 when all is well and 2 when anything is not.
    """
    from vqcompress.checkpoint import verify as check

    problems = check(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "problems": problems}))
        raise SystemExit(2 if problems else 0)
    if problems:
        more = f" (and {len(problems) - 1} more problems, see --json)" if len(problems) > 1 else ""
        raise CheckpointError(f"{folder}: {problems[0]}{more}")
    click.echo(f"{folder}: all files and tensors are as the manifest says")
