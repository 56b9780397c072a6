"""`vqcompress convert NAME WEIGHTS -o FOLDER`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vqcompress.cli.progress import silence_other_bars
from vqcompress.cli.written import say_written
from vqcompress.component_files import bytes_below
from vqcompress.errors import RecipeError

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("name")
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with arguments of the official class; they override those of NAME.",
)
@click.option("--vae", type=FOLDER, help="Folder of an AutoencoderKL, or of a pipeline with one.")
@click.option(
    "--text-encoder", type=FOLDER, help="Folder of a text encoder and its tokenizer, or of a pipeline with them."
)
@click.option("--base", help="Pipeline that LinFusion is put into: any MODEL that quantize takes.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    name: str,
    weights: Path,
    output: Path,
    config_path: Path | None,
    vae: Path | None,
    text_encoder: Path | None,
    base: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert official WEIGHTS of the model NAME to a folder.

    quantize and generate take it, and diffusers after `import vqcompress`.

    NAME is one that `vqcompress presets` lists, or a family whose sizes --config gives: dit, sit, mdt_v1, mdt_v2,
    dit_moe, diffit_latent, pixart, next_dit, flag_dit, large_dit, pt_dit, linfusion. WEIGHTS is a .safetensors file, a
    PyTorch file (.pt, .pth, .ckpt or .bin; only tensors are read, no code is run), or a folder with shards
    consolidated*.RR-of-NN.

    \b
    vqcompress convert dit-xl-2 DiT-XL-2-256x256.pt --vae sd-vae-ft-ema -o out/dit
    vqcompress convert dit-moe-b dit_moe_b_8E2A.pt --vae sd-vae-ft-ema -o out/moe
    vqcompress convert lumina-next-t2i Lumina-Next-T2I --vae sdxl-vae \\
        --text-encoder gemma-2b -o out/lumina
    """
    from vqcompress.checkpoint.local_names import forget_local_names
    from vqcompress.checkpoint.publication import publish
    from vqcompress.models.conversion import convert_official
    from vqcompress.models.pipeline_parts import PipelineParts, read_text, read_vae

    silence_other_bars()
    arguments = _arguments(config_path)
    parts = PipelineParts(
        vae=None if vae is None else read_vae(vae),
        text=None if text_encoder is None else read_text(text_encoder),
        base=None if base is None else _base(base),
    )
    with publish(output, overwrite) as partial:
        convert_official(name, weights, partial, arguments=arguments, parts=parts)
        forget_local_names(partial)
    size = bytes_below(output) / 1e6
    say_written(output, f"{size:.1f} MB, ready for `vqcompress quantize {output} -o …`", as_json)


def _base(model: str) -> Any:
    from vqcompress.architectures import open_pipeline

    return open_pipeline(model)


def _arguments(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path} is not a JSON object of argument names and values")
    return found
