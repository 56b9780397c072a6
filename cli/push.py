"""`vqcompress push DIR OWNER/NAME`"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from vqcompress.cli.progress import StageProgress


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--report", type=click.Path(path_type=Path), help="Folder of `vqcompress report`: pictures and table.")
@click.option("--base", help="Hub id of the original [default: the model that was quantized].")
@click.option("--license", "licence", help="The Hub's word for its licence [default: that of a known model].")
@click.option("--private", is_flag=True, help="Make the repository private, if it is new.")
@click.option("--dry-run", is_flag=True, help="Show the card and the files; send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print repository, files and card as JSON.")
def push(
    folder: Path,
    repository: str,
    report: Path | None,
    base: str | None,
    licence: str | None,
    private: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send a compressed FOLDER to the Hub, with a complete card, in one commit.

    \b
    vqcompress push out/sdxl-vq3 me/sdxl-vq3 --report out/report --dry-run
    """
    from vqcompress.pushing import push as send

    with StageProgress(quiet=as_json):
        pushed = send(folder, repository, report=report, base=base, licence=licence, private=private, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({**asdict(pushed), "url": pushed.url, "sent": not dry_run}, indent=1))
        return
    if dry_run:
        click.echo(pushed.card)
        for name, size in pushed.files.items():
            click.echo(f"{size:>14,}  {name}")
    total = sum(pushed.files.values())
    click.echo(f"{pushed.url}: {len(pushed.files)} files, {total / 1e6:.2f} MB{', not sent' if dry_run else ''}")
    if report is None:
        click.echo("Without --report the card has no pictures and no measured table.", err=True)
