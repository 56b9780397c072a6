"""`vqcompress quantize MODEL -o DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vqcompress.cli.progress import StageProgress
from vqcompress.errors import RecipeError
from vqcompress.methods import DEFAULT_METHOD, METHODS
from vqcompress.recipe import Recipe


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--bits", type=float, help="Bits a weight, everything stored counted (scalar methods: code width) [default: 3]."
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    help="; ".join(f"{name}: {method.description}" for name, method in METHODS.items())
    + f" [default: {DEFAULT_METHOD}].",
)
@click.option(
    "--budget",
    type=click.Choice(["model", "layer"]),
    help="Bits on average over the model, dealt out by what errors cost, or in every layer [default: by method].",
)
@click.option(
    "--components", help="Parts to compress, comma-separated, e.g. unet,text_encoder [default: the denoiser]."
)
@click.option(
    "--prompts", help="Calibration prompts: a set's name, or a .txt, .tsv or .jsonl file, or hf:owner/dataset."
)
@click.option("--count", type=int, help="How many prompts to calibrate on, chosen for diversity [default: 64].")
@click.option("--steps", type=int, help="Denoising steps of the calibration runs [default: the model's own].")
@click.option("--guidance", type=float, help="Guidance scale of the calibration runs [default: the model's own].")
@click.option(
    "--resolution", type=int, help="Height and width of the calibration images, in pixels [default: the model's own]."
)
@click.option(
    "--order",
    type=click.Choice(["parallel", "sequential"]),
    help="Record all layers in one pass of the original, or each block behind the compressed ones [default: parallel].",
)
@click.option("--memory-budget", type=float, help="GB for second moments in one recording pass [default: 4].")
@click.option("--seed", type=int, help="Seed of everything random [default: 0].")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the method, e.g. state_bits=14."
)
@click.option(
    "--output-feedback/--no-output-feedback",
    default=None,
    help="Trellis codes: also feed errors back between a layer's outputs: less error, ten times the encoding time [default: no].",
)
@click.option(
    "--finetune",
    type=click.Choice(["none", "blocks", "full"]),
    help="Let what is continuous learn from the original: block by block, or also as a whole [default: none].",
)
@click.option(
    "--preset", type=click.Choice(["fast", "default", "best"]), help="How long to fine-tune [default: default]."
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder that keeps what calibration recorded, for further runs with other methods or bits.",
)
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="YAML recipe; options here override it.")
@click.option("--report", is_flag=True, help="Also compare with the original and write OUTPUT-report.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, what it needs and what comes out; write nothing."
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and no progress.")
def quantize(
    model: str, output: Path | None, as_json: bool, overwrite: bool, dry_run: bool, report: bool, **options: Any
) -> None:
    """Compress MODEL into a folder that plain diffusers loads after `import vqcompress`.

    MODEL is an alias (shapes, sdxl, sdxl-turbo, sd15, sd21, pixart-alpha, …; `vqcompress presets` lists all), a Hub id, a
    diffusers folder or a single .safetensors file. Official weights of other networks become a folder with `vqcompress
    convert`. With --dry-run, any name that `vqcompress presets` lists will do, without its weights. A run that was
    stopped goes on where it was when the same command is given again.

    \b
    vqcompress quantize shapes -o out/shapes-vq3
    vqcompress quantize sdxl -o out/sdxl-vq3 --bits 3 --prompts general --count 256
    vqcompress quantize my_model.safetensors -o out/mine --method additive
    vqcompress quantize dit-moe-g --dry-run
    torchrun --nproc-per-node 8 -m vqcompress.cli quantize sdxl -o out/sdxl-vq3
    """
    recipe = _recipe(model, options)
    if dry_run:
        _dry_run(model, recipe, as_json)
        return
    if output is None:
        raise RecipeError("name the folder to write: -o FOLDER")
    from vqcompress.checkpoint import inspect
    from vqcompress.compression import quantize as compress
    from vqcompress.workers import is_main_process_by_environment

    with StageProgress(quiet=as_json or not is_main_process_by_environment()) as progress:
        folder = compress(
            model,
            output,
            recipe=recipe,
            overwrite=overwrite,
            calibration_folder=options["calibration"],
            progress=progress,
        )
    if not is_main_process_by_environment():
        return
    found = inspect(folder)
    if as_json:
        click.echo(
            json.dumps({"output": str(folder), "bits_per_weight": found["bits_per_weight"], "bytes": found["bytes"]})
        )
    else:
        click.echo(
            f"{folder}: {found['bits_per_weight']:.3f} bits a quantized weight, {found['bytes'] / 1e6:.2f} MB on disk"
        )
    if report:
        from vqcompress.cli.report import write_comparison

        write_comparison(model, [folder], folder.with_name(folder.name + "-report"), quiet=as_json)


def _recipe(model: str, options: dict[str, Any]) -> Recipe:
    """Command line over recipe file over defaults."""
    calibration = {
        "prompts": options["prompts"],
        "count": options["count"],
        "steps": options["steps"],
        "guidance": options["guidance"],
        "height": options["resolution"],
        "width": options["resolution"],
        "order": options["order"],
        "memory_budget_gb": options["memory_budget"],
    }
    base: dict[str, Any] = (
        Recipe.read(options["recipe_path"], model=model).to_dict() if options["recipe_path"] else {"model": model}
    )
    changes: dict[str, Any] = {
        key: options[key]
        for key in ("bits", "method", "seed", "budget", "output_feedback", "finetune")
        if options[key] is not None
    }
    if options["components"]:
        changes["components"] = [part.strip() for part in options["components"].split(",")]
    if options["settings"]:
        changes["settings"] = {**base.get("settings", {}), **dict(_setting(item) for item in options["settings"])}
    if options["preset"]:
        changes["training"] = {**base.get("training", {}), "preset": options["preset"]}
    given = {key: value for key, value in calibration.items() if value is not None}
    changes["calibration"] = {**base.get("calibration", {}), **given}
    return Recipe.parse({**base, **changes})


def _setting(item: str) -> tuple[str, Any]:
    key, sign, value = item.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set takes KEY=VALUE, got {item!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _dry_run(model: str, recipe: Recipe, as_json: bool) -> None:
    from vqcompress.cli.dry_run import dry_run_lines
    from vqcompress.estimate import estimate

    expected = estimate(model, recipe)
    click.echo(json.dumps(expected, indent=2) if as_json else "\n".join(dry_run_lines(expected)))
