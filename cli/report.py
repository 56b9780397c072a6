"""`vqcompress report ORIGINAL DIR…`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vqcompress.cli.dense_budget_option import dense_budget_option
from vqcompress.cli.placement_options import chosen_placement, placement_options
from vqcompress.cli.progress import StageProgress
from vqcompress.cli.report_summary import print_summary

if TYPE_CHECKING:
    from vqcompress.placement import Placement
    from vqcompress.reports import EvaluationConfig


@click.command()
@click.argument("original")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="out/report", show_default=True, help="Folder to write."
)
@click.option("--prompts", help="Evaluation prompts: the name of a set, or a file [default: the model's held-out set].")
@click.option("--count", default=48, show_default=True, type=click.IntRange(1, 10_000), help="Images per variant.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps [default: the model's].")
@click.option("--guidance", type=click.FloatRange(0), help="Guidance scale [default: the model's].")
@click.option("--seed", type=click.IntRange(0), default=1000, show_default=True, help="Seed of the first image.")
@dense_budget_option
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="Compare with another package's format as well: gguf-q4_k, nf4, hqq-3, torchao-int4, sdnq-uint4, "
    "llmcompressor-gptq-3, gptqmodel-3, … (may be repeated); with a width for each layer: hqq-3-allocated, ….",
)
@placement_options
@click.option("--no-verify", is_flag=True, help="Open FOLDERS without comparing them with their manifests.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, without progress.")
def report(
    original: str,
    folders: tuple[Path, ...],
    output: Path,
    prompts: str | None,
    count: int,
    steps: int | None,
    guidance: float | None,
    seed: int,
    dense_budget: str,
    peers: tuple[str, ...],
    device: str,
    dtype: str,
    offload: str,
    no_verify: bool,
    as_json: bool,
) -> None:
    """Compare compressed FOLDERS with their ORIGINAL: sizes, errors and images.

    Writes report.html (one self-contained file), report.json, report.md and grid.png to OUTPUT. The report is about the
    first folder and compares it with the others.

    \b
    vqcompress report shapes out/shapes-vq3 out/shapes-gptq4
    """
    placement = chosen_placement(device, dtype, offload, quiet=as_json)
    from vqcompress.reports import EvaluationConfig
    from vqcompress.sampling_config import SamplingConfig

    config = EvaluationConfig(
        count, seed, SamplingConfig(steps, guidance), verified=not no_verify, dense_budget=dense_budget
    )
    write_comparison(
        original,
        list(folders),
        output,
        peers=peers,
        prompts=prompts,
        config=config,
        quiet=as_json,
        placement=placement,
    )


def write_comparison(
    original: str,
    folders: list[Path],
    output: Path,
    *,
    peers: tuple[str, ...] = (),
    prompts: str | None = None,
    config: EvaluationConfig | None = None,
    quiet: bool = False,
    placement: Placement | None = None,
) -> None:
    """Run the comparison, write the report and print it: its Markdown, in a terminal a summary, ``quiet`` JSON."""
    from vqcompress.reports import report as compare_and_write

    with StageProgress(quiet=quiet) as progress:
        comparison = compare_and_write(
            original,
            folders,
            output,
            peers=peers,
            prompts=prompts,
            config=config,
            progress=progress,
            device=placement,
        )
    if quiet:
        click.echo(json.dumps(comparison.to_json()))
    elif sys.stdout.isatty():
        print_summary(comparison, output)
    else:
        click.echo((output / "report.md").read_text(encoding="utf-8"))
        click.echo(f"{output / 'report.html'}")
