"""`vqcompress generate DIR PROMPT…`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vqcompress.cli.dense_budget_option import dense_budget_option
from vqcompress.cli.model_argument import model_argument
from vqcompress.cli.placement_options import chosen_placement, placement_options
from vqcompress.cli.progress import StageProgress
from vqcompress.disk import check_file_target
from vqcompress.errors import RecipeError

SEED = click.IntRange(0, 2**63 - 1)


@click.command()
@model_argument
@click.argument("prompts", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="grid.png", show_default=True, help="PNG file to write."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the first image; the next ones add 1.")
@click.option("--images", default=1, show_default=True, type=click.IntRange(1), help="Images per prompt.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps [default: the model's].")
@click.option("--guidance", type=click.FloatRange(0), help="Guidance scale [default: the model's].")
@placement_options
@dense_budget_option
@click.option("--no-verify", is_flag=True, help="Open MODEL without comparing it with its manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print prompts and seeds as JSON, without progress.")
def generate(
    model: str,
    prompts: tuple[str, ...],
    output: Path,
    seed: int,
    images: int,
    steps: int | None,
    guidance: float | None,
    device: str,
    dtype: str,
    offload: str,
    dense_budget: str,
    no_verify: bool,
    as_json: bool,
) -> None:
    """Generate images with MODEL and write them as one PNG grid; of a video, the frames side by side.

    MODEL is a compressed folder, or any MODEL that `vqcompress quantize` takes. Files that have a manifest are compared
    with it first (SHA-256).

    \b
    vqcompress generate out/shapes-vq3 "three red squares on a gray background" -o grid.png
    """
    if output.suffix.lower() != ".png":
        raise RecipeError(f"images are written as PNG; name the file {output.with_suffix('.png')}, not {output}")
    check_file_target(output)
    if not all(prompt.strip() for prompt in prompts):
        raise RecipeError("a prompt is empty; write what the image should show, in quotes")
    placement = chosen_placement(device, dtype, offload, quiet=as_json)
    from vqcompress.generation import generate as draw
    from vqcompress.generation import open_placed
    from vqcompress.layers import set_dense_budget
    from vqcompress.reports.pictures import tile
    from vqcompress.sampling_config import SamplingConfig

    asked = SamplingConfig(steps, guidance)
    repeated = [prompt for prompt in prompts for _ in range(images)]
    seeds = list(range(seed, seed + len(repeated)))
    with StageProgress(quiet=as_json) as progress:
        pipeline = open_placed(model, placement, verified=not no_verify)
        kept = set_dense_budget(pipeline, dense_budget)
        if kept.layers and not as_json:
            click.echo(kept)
        drawn = draw(pipeline, repeated, seeds=seeds, sampling=asked, progress=progress)
    made = [_frames(image) for image in drawn]
    columns = len(made[0]) if len(made[0]) > 1 else images if images > 1 else min(len(made), 4)
    tile([frame for frames in made for frame in frames], columns=columns).save(output)
    record = {"output": str(output), "images": [{"prompt": p, "seed": s} for p, s in zip(repeated, seeds, strict=True)]}
    click.echo(json.dumps(record) if as_json else f"{output}: {len(made)} images, seeds {seeds[0]} to {seeds[-1]}")


def _frames(drawn: Any) -> list[Any]:
    """An image as a list of one, a video as the list of its frames."""
    return list(drawn) if isinstance(drawn, list | tuple) else [drawn]
