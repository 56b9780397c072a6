"""`vqcompress quantize MODEL -o DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqcompress.cli.model_argument import model_argument
from vqcompress.cli.placement_options import chosen_placement, placement_options
from vqcompress.cli.progress import StageProgress, silence_other_bars
from vqcompress.cli.written import say
from vqcompress.errors import RecipeError
from vqcompress.methods import DEFAULT_METHOD, METHODS
from vqcompress.recipe import Recipe, values_of_preset
from vqcompress.recipe_presets import RECIPE_PRESETS, layered

if TYPE_CHECKING:
    from vqcompress.placement import Placement

DEFAULTS = Recipe(model="")
CALIBRATION = DEFAULTS.calibration
WITH_OUTPUT_FEEDBACK = ", ".join(name for name, method in METHODS.items() if method.output_feedback)


@click.command()
@model_argument(required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--base",
    help="Pipeline (name, folder, Hub id) for whatever a MODEL that is a single file lacks [default: its family's].",
)
@click.option(
    "--bits",
    type=float,
    help=f"Bits per weight, everything stored counted; for scalar methods, bits per code [default: {DEFAULTS.bits:g}].",
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
    help="Whether --bits is an average over the model, allocated by what errors cost, or the same in every layer "
    "[default: by method].",
)
@click.option("--components", help="Components to compress, as in unet,text_encoder [default: the denoiser].")
@click.option(
    "--prompts",
    help="Calibration prompts: the name of a set, a .txt, .tsv or .jsonl file, or hf:owner/dataset "
    "[default: the model's set].",
)
@click.option(
    "--images",
    type=click.Path(file_okay=False),
    help="Folder with images for models that edit, fill or animate some [default: drawn noise with the spectrum of "
    "photographs].",
)
@click.option(
    "--count", type=int, help=f"Number of calibration prompts, chosen for diversity [default: {CALIBRATION.count}]."
)
@click.option("--steps", type=int, help="Denoising steps in calibration [default: the model's].")
@click.option("--guidance", type=float, help="Guidance scale in calibration [default: the model's].")
@click.option("--resolution", type=int, help="Height and width of calibration images in pixels [default: the model's].")
@click.option(
    "--order",
    type=click.Choice(["parallel", "sequential"]),
    help="Calibrate all layers on the original (parallel), or block after block on the compressed blocks before it "
    f"(sequential) [default: {CALIBRATION.order}].",
)
@click.option(
    "--memory-budget",
    type=float,
    help=f"GB of second moments to hold in one calibration pass [default: {CALIBRATION.memory_budget_gb:g}].",
)
@click.option("--seed", type=int, help=f"Seed of all random choices [default: {DEFAULTS.seed}].")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of the method, as in state_bits=14."
)
@click.option(
    "--output-feedback/--no-output-feedback",
    default=None,
    help=f"Also feed errors back between a layer's outputs ({WITH_OUTPUT_FEEDBACK} only): less error, 1.5 "
    "to 2.5 times the encoding time, and backward passes of the denoiser to record [default: no].",
)
@click.option(
    "--finetune",
    type=click.Choice(["none", "blocks", "full"]),
    help="Fine-tune scales, codebooks, biases and norms against the original, block by block (blocks) and then as a "
    f"whole (full) [default: {DEFAULTS.finetune}].",
)
@click.option(
    "--preset",
    type=click.Choice(RECIPE_PRESETS),
    help="Effort of the whole job: the search for codes, prompts for calibration, fine-tuning only in best "
    "(docs/command-line.md). Other options win [default: default].",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder that keeps the calibration data, for later runs with other methods or bits.",
)
@placement_options
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="YAML recipe; options here override it.")
@click.option("--report", is_flag=True, help="Also compare with the original and write OUTPUT-report.")
@click.option("--dry-run", is_flag=True, help="Print what a run would do, need and produce; write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("-v", "--verbose", is_flag=True, help="Show every layer as it is encoded, not every block.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, without progress.")
def quantize(
    model: str | None,
    output: Path | None,
    as_json: bool,
    verbose: bool,
    overwrite: bool,
    dry_run: bool,
    report: bool,
    **options: Any,
) -> None:
    """Compress MODEL into a folder that diffusers loads after `import vqcompress`.

    MODEL is a name (shapes, sdxl, sd15, pixart-alpha, …; `vqcompress presets` lists all), a Hub id, a diffusers folder
    or a .safetensors file. `vqcompress convert` makes a folder from official weights of other networks. With --dry-run,
    MODEL can be any name that `vqcompress presets` lists, without its weights. It may be left out where --recipe names
    one. If a run was stopped, the same command continues it.

    \b
    vqcompress quantize shapes -o out/shapes-vq3
    vqcompress quantize sdxl -o out/sdxl-vq3 --prompts general --count 256
    vqcompress quantize flux-dev -o out/flux-vq3 --device cuda --offload group
    vqcompress quantize my_model.safetensors -o out/mine --method additive
    vqcompress quantize my_flux.safetensors --base flux-dev -o out/mine
    vqcompress quantize dit-moe-g --dry-run
    vqcompress quantize --recipe recipes/flux.yaml --preset best -o out/flux-vq3
    torchrun --nproc-per-node 8 -m vqcompress.cli quantize sdxl -o out/sdxl-vq3
    """
    recipe = _recipe(model, options)
    model = recipe.model
    from vqcompress.workers import is_main_process_by_environment

    if output is None and not dry_run:
        raise RecipeError("no output is given; name the folder to write with -o FOLDER")
    quiet = as_json or dry_run or not is_main_process_by_environment()
    placement = chosen_placement(options["device"], options["dtype"], options["offload"], quiet=quiet)
    if output is None or dry_run:
        _dry_run(model, recipe, as_json, placement)
        return
    from vqcompress.compression import quantize as compress

    with StageProgress(quiet=as_json or not is_main_process_by_environment(), layers=verbose) as progress:
        folder = compress(
            model,
            output,
            recipe=recipe,
            overwrite=overwrite,
            calibration_folder=options["calibration"],
            progress=progress,
            device=placement,
        )
    if not is_main_process_by_environment():
        return
    if as_json:
        click.echo(json.dumps({"output": str(folder), "bits_per_weight": folder.bits, "bytes": folder.bytes}))
    else:
        click.echo(f"{folder}: {folder.bits:.3f} bits per quantized weight, {folder.bytes / 1e6:.2f} MB on disk")
    if report:
        from vqcompress.cli.report import write_comparison

        write_comparison(
            model, [folder.path], output.with_name(output.name + "-report"), quiet=as_json, placement=placement
        )


def _recipe(model: str | None, options: dict[str, Any]) -> Recipe:
    """The recipe: options of the command line replace those of the recipe file, which replace the defaults."""
    calibration = {
        "prompts": options["prompts"],
        "images": options["images"],
        "count": options["count"],
        "steps": options["steps"],
        "guidance": options["guidance"],
        "height": options["resolution"],
        "width": options["resolution"],
        "order": options["order"],
        "memory_budget_gb": options["memory_budget"],
    }
    path = options["recipe_path"]
    if model is None and path is None:
        raise RecipeError("no MODEL is given; name one (`vqcompress presets` lists them), or a --recipe that does")
    changes: dict[str, Any] = {
        key: options[key]
        for key in ("base", "bits", "method", "seed", "budget", "output_feedback", "finetune")
        if options[key] is not None
    }
    # With the changes already: the file's preset sets what their method has.
    base: dict[str, Any] = Recipe.read(path, for_model=model, **changes).to_dict() if path else {"model": model}
    if options["preset"]:
        base = layered(base, values_of_preset(options["preset"], options, base))
    if options["components"] is not None:
        changes["components"] = [part.strip() for part in options["components"].split(",")]
        if not all(changes["components"]):
            raise RecipeError("--components takes names of components with commas between, such as unet,text_encoder")
    if options["settings"]:
        changes["settings"] = {**base.get("settings", {}), **dict(parse_setting(item) for item in options["settings"])}
    given = {key: value for key, value in calibration.items() if value is not None}
    changes["calibration"] = {**base.get("calibration", {}), **given}
    return Recipe.parse({**base, **changes})


def parse_setting(item: str) -> tuple[str, Any]:
    """Key and value of ``KEY=VALUE``, the value read as JSON where it is that. Raises `RecipeError`."""
    key, sign, value = item.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set takes KEY=VALUE, got {item!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _dry_run(model: str, recipe: Recipe, as_json: bool, placement: Placement) -> None:
    from vqcompress.cli.dry_run import dry_run_lines
    from vqcompress.estimate import estimate

    silence_other_bars()
    expected = estimate(model, recipe, placement)
    if as_json:
        click.echo(json.dumps(expected, indent=2))
        return
    for line in dry_run_lines(expected):
        say(line, hang=21)
