"""What `vqcompress report` says in a terminal: the findings in lines that fit it. Files and pipes get all of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqcompress.cli.written import say

if TYPE_CHECKING:
    from vqcompress.reports import Comparison

SHOWN = {
    ("bits", "quantized"): "bits",
    ("size", "MB"): "MB",
    ("denoiser error", "relative, signal to error"): "error",
    ("PSNR median", "dB, 95 % interval"): "PSNR, dB",
    ("PSNR worst", "dB, image"): "worst",
    ("caption accuracy", "95 % interval"): "right",
    ("time", "× original"): "time",
}
"""Columns of the report, by name and remark -> their names here."""
WITH_REMARK = "PSNR, dB"


def print_summary(comparison: Comparison, folder: Path) -> None:
    """The first variant in a sentence or two, a table, verdicts, what was not compared, and where the report is."""
    from vqcompress.reports.verdicts import verdict_lines
    from vqcompress.reports.wording import summary

    say(summary(comparison), hang=0)
    click.echo()
    Console(width=shutil.get_terminal_size().columns, highlight=False).print(_table(comparison))
    click.echo()
    for verdict in verdict_lines(comparison.verdicts):
        say(f"{verdict.outcome}: {verdict.subject} {verdict.text}", hang=2)
    for sentence in comparison.missing:
        say(f"not compared: {sentence}", hang=2)
    say(f"{folder / 'report.html'}: everything, with pictures; report.md and report.json beside it", hang=2)


def _table(comparison: Comparison) -> Table:
    from vqcompress.reports.table import variants_table

    found = variants_table(comparison)
    chosen = [
        (index, name)
        for index, heading in enumerate(found.headings)
        if (name := SHOWN.get((heading.name, heading.remark)))
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for _, name in chosen:
        table.add_column(name, justify="right", no_wrap=True)
    for line in found.lines:
        cells = [line.cells[index] for index, _ in chosen]
        texts = [
            f"{cell.text} ({cell.remark})" if name == WITH_REMARK and cell.remark else cell.text
            for cell, (_, name) in zip(cells, chosen, strict=True)
        ]
        table.add_row(Text(line.label), *texts)
    return table
