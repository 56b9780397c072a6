"""`vqcompress finetune DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vqcompress.cli.progress import StageProgress
from vqcompress.cli.quantize import _setting


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write [default: FOLDER itself].")
@click.option("--model", help="The original that FOLDER was made from [default: the one that FOLDER's recipe names].")
@click.option(
    "--preset", type=click.Choice(["fast", "default", "best"]), help="How long to train [default: the recipe's]."
)
@click.option("--steps", type=click.IntRange(1), help="Training steps [default: by preset].")
@click.option(
    "--rate",
    type=float,
    help="Largest step, relative to each tensor's RMS and the root of the error at the start [default: 0.05].",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the recipe's training, e.g. weighting=min-snr.",
)
@click.option("--dry-run", is_flag=True, help="Say what it needs in memory, time and disk; write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and no progress.")
def finetune(folder: Path, output: Path | None, as_json: bool, dry_run: bool, overwrite: bool, **options: Any) -> None:
    """Let FOLDER's denoiser learn from the original: scales, codebooks, biases, norms, and new codes for the worst layers.

    The original is sampled once, on prompts that calibration did not use. A run that was stopped goes on where it was when
    the same command is given again. Several processes share the work under torchrun:

    \b
    vqcompress finetune out/sdxl-vq3 -o out/sdxl-vq3-tuned
    torchrun --nproc-per-node 4 -m vqcompress.cli finetune out/sdxl-vq3 -o out/sdxl-vq3-tuned
    """
    changes = {key: options[key] for key in ("preset", "steps", "rate") if options[key] is not None}
    changes |= dict(_setting(item) for item in options["settings"])
    if dry_run:
        _dry_run(folder, changes, as_json)
        return
    from vqcompress.tuning import finetune as tune

    with StageProgress(quiet=as_json) as progress:
        written, outcome = tune(
            folder, output, model=options["model"], overwrite=overwrite, progress=progress, **changes
        )
    change = outcome.after / outcome.before - 1 if outcome.before else 0.0
    if as_json:
        record = {"before": outcome.before, "after": outcome.after, "steps": outcome.steps}
        click.echo(json.dumps({"output": str(written), "held_out_error": {**record, "best_step": outcome.best_step}}))
    else:
        click.echo(f"{written}: held-out error {outcome.before:.3e} -> {outcome.after:.3e} ({change:+.0%})")


def _dry_run(folder: Path, changes: dict[str, Any], as_json: bool) -> None:
    from vqcompress.tuning import tuning_cost

    with StageProgress(quiet=as_json):
        expected = tuning_cost(folder, **changes)
    if as_json:
        click.echo(json.dumps(expected, indent=2))
        return
    for line in (
        f"{folder}: {expected['learning'] / 1e6:.2f} M numbers would learn",
        f"  peak memory        about {expected['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  recording          about {expected['record_seconds'] / 60:.1f} minutes, {expected['disk_bytes'] / 1e9:.2f} GB on disk",
        f"  training           about {expected['train_seconds'] / 60:.1f} minutes on this machine",
    ):
        click.echo(line)
