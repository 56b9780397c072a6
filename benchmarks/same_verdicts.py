"""Does another run of ``make evidence`` say the same? Its verdicts, and its medians, against the published ones.

``python benchmarks/same_verdicts.py FOLDER`` compares ``docs/results`` with the folder of the same name that another
machine, or another run, wrote. For each report: how many verdicts have the same outcome and rivals, and how many median
PSNRs lie inside the published interval. Exits with 1, naming them, if a verdict or a median is another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from vqcompress.reports.comparison import Comparison
from vqcompress.reports.verdicts import verdict_lines

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Agreement:
    """Of one report: verdicts and medians that both runs have, and in words those that differ."""

    verdicts: int
    medians: int
    differences: tuple[str, ...]


def agreement(published: Comparison, again: Comparison) -> Agreement:
    """``again`` against ``published``. A variant that only one of them has is a difference."""
    ours, theirs = ({each.label: each for each in found.variants} for found in (published, again))
    both = [label for label in ours if label in theirs]
    absent = [f"{label}: only in one of them" for label in {**ours, **theirs} if label not in both]
    outcomes = {line.subject: line.outcome for line in verdict_lines(again.verdicts)}
    said = [line for line in verdict_lines(published.verdicts) if line.subject in outcomes]
    changed = [
        f"{line.subject}: {line.outcome}, now {outcomes[line.subject]}"
        for line in said
        if line.outcome != outcomes[line.subject]
    ]
    return Agreement(len(said), len(both), (*absent, *changed, *_medians(published, again, both)))


def _medians(published: Comparison, again: Comparison, labels: list[str]) -> Iterator[str]:
    theirs = {each.label: each.psnr_median for each in again.variants}
    for variant in published.variants:
        ours, now = variant.psnr_median, theirs.get(variant.label)
        if variant.label in labels and ours and now and not ours.low <= now.value <= ours.high:
            interval = f"{ours.low:.1f} to {ours.high:.1f}"
            yield f"{variant.label}: median {ours.value:.1f} dB ({interval}), now {now.value:.1f}"


def reports(folder: Path) -> dict[str, Comparison]:
    """Name -> report of each stamped result that is one."""
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: Comparison.from_json(data["report"]) for name, data in read.items() if "report" in data}


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    published, again = reports(RESULTS), reports(folder)
    found = {name: agreement(published[name], again[name]) for name in published if name in again}
    click.echo("| result | verdicts | medians | differ |\n|---|---|---|---|")
    for name, each in found.items():
        click.echo(f"| {name} | {each.verdicts} | {each.medians} | {'; '.join(each.differences) or 'none'} |")
    if not found:
        raise click.ClickException(f"{folder} has no report that docs/results has")
    if any(each.differences for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
