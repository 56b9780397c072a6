"""`vqcompress finetune DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqcompress.cli.placement_options import chosen_placement, placement_options
from vqcompress.cli.progress import StageProgress
from vqcompress.cli.quantize import parse_setting

if TYPE_CHECKING:
    from vqcompress.placement import Placement


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write [default: FOLDER itself].")
@click.option("--model", help="Original that FOLDER was made from [default: the recipe's; needed for a local one].")
@click.option("--prompts", help="Prompt set [default: the recipe's; needed for a file].")
@click.option(
    "--preset", type=click.Choice(["fast", "default", "best"]), help="How long to train [default: the recipe's]."
)
@click.option("--steps", type=click.IntRange(1), help="Training steps [default: by preset].")
@click.option(
    "--rate",
    type=float,
    help="Learning rate, relative to each tensor's RMS and to the square root of the starting error [default: 0.05].",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Key of the recipe's training section, as in weighting=min-snr.",
)
@placement_options
@click.option("--dry-run", is_flag=True, help="Print the memory, time and disk space that it needs; write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--no-verify", is_flag=True, help="Open FOLDER without comparing it with its manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, without progress.")
def finetune(
    folder: Path,
    output: Path | None,
    as_json: bool,
    dry_run: bool,
    overwrite: bool,
    no_verify: bool,
    **options: Any,
) -> None:
    """Fine-tune scales, codebooks, biases and norms of FOLDER's denoiser against the original, and requantize the worst
    layers.

    The original is sampled once, on prompts that calibration did not use. If a run was stopped, the same command
    continues it. Under torchrun, several processes share the work:

    \b
    vqcompress finetune out/vq3 -o out/tuned
    torchrun --nproc-per-node 4 -m vqcompress.cli finetune out/vq3 -o out/tuned
    """
    changes = {key: options[key] for key in ("preset", "steps", "rate") if options[key] is not None}
    changes |= dict(parse_setting(item) for item in options["settings"])
    from vqcompress.workers import is_main_process_by_environment

    quiet = as_json or not is_main_process_by_environment()
    placement = chosen_placement(options["device"], options["dtype"], options["offload"], quiet=quiet)
    if dry_run:
        _dry_run(folder, options["prompts"], changes, as_json, not no_verify, placement)
        return
    from vqcompress.tuning import finetune as tune

    with StageProgress(quiet=as_json) as progress:
        written = tune(
            folder,
            output,
            model=options["model"],
            prompts=options["prompts"],
            overwrite=overwrite,
            progress=progress,
            verified=not no_verify,
            device=placement,
            training=changes,
        )
    change = written.after / written.before - 1 if written.before else 0.0
    if as_json:
        record = {"before": written.before, "after": written.after, "steps": written.steps}
        click.echo(json.dumps({"output": str(written), "held_out_error": {**record, "best_step": written.best_step}}))
    else:
        click.echo(f"{written}: held-out error {written.before:.3e} -> {written.after:.3e} ({change:+.0%})")


def _dry_run(
    folder: Path,
    prompts: str | None,
    changes: dict[str, Any],
    as_json: bool,
    verified: bool,
    placement: Placement,
) -> None:
    from vqcompress.tuning import tuning_cost

    with StageProgress(quiet=as_json):
        expected = tuning_cost(folder, prompts, training=changes, verified=verified, device=placement)
    if as_json:
        click.echo(json.dumps(expected, indent=2))
        return
    for line in (
        f"{folder}: {expected['learning'] / 1e6:.2f} M trainable parameters",
        f"  peak memory        about {expected['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  recording          about {expected['record_seconds'] / 60:.1f} minutes, "
        f"{expected['disk_bytes'] / 1e9:.2f} GB on disk",
        f"  training           about {expected['train_seconds'] / 60:.1f} minutes on this machine",
    ):
        click.echo(line)
