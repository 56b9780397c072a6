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
from vqcompress.errors import RecipeError
from vqcompress.progress import one_step
from vqcompress.sampling_config import GivenInputs, SamplingConfig

SEED = click.IntRange(0, 2**63 - 1)
FILE = click.Path(path_type=Path)


@click.command()
@model_argument()
@click.argument("prompts", nargs=-1)
@click.option("--prompt-file", type=FILE, help="File with more prompts, one a line (.txt, .tsv or .jsonl).")
@click.option("--negative-prompt", help="What the images should not show.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    default="grid.png",
    show_default=True,
    help="A .png file, which is a grid where there are several images; a .mp4 or .gif file for one video; or a folder, "
    "for a file of each.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the first image; the next ones add 1.")
@click.option("--images", default=1, show_default=True, type=click.IntRange(1), help="Images or videos per prompt.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps that are taken [default: the model's].")
@click.option("--guidance", type=click.FloatRange(0), help="Guidance scale [default: the model's].")
@click.option("--height", type=click.IntRange(8), help="Height in pixels [default: the model's, or the image's].")
@click.option("--width", type=click.IntRange(8), help="Width in pixels [default: the model's, or the image's].")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="PATH[:SCALE]",
    help="LoRA to load: a .safetensors file, a folder or a Hub id (may be repeated).",
)
@click.option(
    "--image", type=FILE, help="Image to start from, to edit or to animate. Text-to-image models start from it as well."
)
@click.option("--mask", type=FILE, help="White where a model that fills images paints anew.")
@click.option("--strength", type=float, help="How far --image may be changed, in 0..1 [default: the pipeline's].")
@click.option("--frames", type=click.IntRange(1), help="Frames of a video [default: the model's].")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Frames a second [default: the model's, or 16].")
@placement_options
@dense_budget_option
@click.option("--no-verify", is_flag=True, help="Open MODEL without comparing it with its manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print files, prompts and seeds as JSON, without progress.")
def generate(
    model: str, prompts: tuple[str, ...], output: Path, seed: int, images: int, as_json: bool, **options: Any
) -> None:
    """Generate images or videos with MODEL.

    MODEL is a compressed folder, or any MODEL that `vqcompress quantize` takes. Files that have a manifest are compared
    with it first (SHA-256). PNG files say in their metadata what they were made from.

    \b
    vqcompress generate out/shapes-vq3 "three red squares on gray" -o squares.png
    vqcompress generate out/vq3 --prompt-file p.txt --lora ink.safetensors:0.8
    vqcompress generate out/vq3 "a fort" --image in.jpg --strength 0.6 -o out.png
    vqcompress generate out/wan-vq3 "a cat runs through snow" -o cat.mp4
    """
    texts = _prompts(prompts, options["prompt_file"])
    from vqcompress.generation import OutputFiles, seed_list
    from vqcompress.generation.call_checks import check_sampling
    from vqcompress.generation.loras import parsed_loras

    repeated = [prompt for prompt in texts for _ in range(images)]
    seeds = seed_list(seed, len(repeated))
    files = OutputFiles.at(output, len(repeated), columns=images if images > 1 else None)
    asked = _sampling(options)
    check_sampling(asked)
    loras = parsed_loras(options["loras"])
    placement = chosen_placement(options["device"], options["dtype"], options["offload"], quiet=as_json)
    from vqcompress.generation import Drawn, cut_prompts, draw, open_placed, settings_of
    from vqcompress.layers import set_dense_budget

    with StageProgress(quiet=as_json) as progress:
        with one_step(progress, "open", model):
            pipeline, sampling = open_placed(
                model, placement, sampling=asked, loras=loras, verified=not options["no_verify"]
            )
        files = files.for_pipeline(pipeline, options["fps"])
        kept = set_dense_budget(pipeline, options["dense_budget"])
        if kept.layers and not as_json:
            click.echo(kept)
        for sentence in cut_prompts(pipeline, texts):
            click.echo(f"vqcompress: {sentence}", err=True)
        made = draw(pipeline, repeated, seeds, sampling, progress)
    drawn = [Drawn.of(*each) for each in zip(made, repeated, seeds, strict=True)]
    written = files.write(drawn, settings_of(model, sampling, loras))
    _say(files, written, drawn, as_json)


def _prompts(given: tuple[str, ...], path: Path | None) -> list[str]:
    from vqcompress.generation import prompt_list

    if path is not None and not path.is_file():
        raise RecipeError(f"there is no prompt file {path}")
    texts = [*given, *(prompt_list(path) if path else ())]
    if not texts:
        raise RecipeError("no prompt is given; write PROMPTS in quotes after the model, or give --prompt-file FILE")
    return prompt_list(texts)


def _sampling(options: dict[str, Any]) -> SamplingConfig:
    from vqcompress.generation import read_image

    inputs = GivenInputs(
        options["negative_prompt"],
        options["image"] and read_image(options["image"], "--image"),
        options["mask"] and read_image(options["mask"], "--mask"),
        options["strength"],
        options["frames"],
        options["fps"],
    )
    return SamplingConfig(options["steps"], options["guidance"], options["height"], options["width"], inputs=inputs)


def _say(files: Any, written: list[Path], drawn: list[Any], as_json: bool) -> None:
    if as_json:
        images = [
            {"prompt": each.prompt, "seed": each.seed, "file": str(path)}
            for each, path in zip(drawn, written if len(written) > 1 else written * len(drawn), strict=True)
        ]
        click.echo(json.dumps({"output": str(files.path), "images": images}))
        return
    what = "video" if len(drawn[0].frames) > 1 else "image"
    count = f"1 {what}, seed {drawn[0].seed}"
    if len(drawn) > 1:
        count = f"{len(drawn)} {what}s, seeds {drawn[0].seed} to {drawn[-1].seed}"
    width, height = drawn[0].frames[0].size
    click.echo(f"{files.path}: {count}, {width} x {height} pixels")
