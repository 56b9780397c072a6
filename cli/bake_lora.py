"""`vqcompress bake-lora MODEL LORA[:SCALE]… -o DIR`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vqcompress.cli.dtype_option import dtype_option
from vqcompress.cli.model_argument import model_argument
from vqcompress.cli.placement_options import chosen_placement, device_options
from vqcompress.cli.progress import StageProgress
from vqcompress.cli.written import say_written
from vqcompress.methods import METHODS
from vqcompress.progress import one_step


@click.command("bake-lora")
@model_argument()
@click.argument("loras", nargs=-1, required=True, metavar="LORA[:SCALE]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--base", help="Pipeline for whatever a MODEL that is a single file lacks.")
@dtype_option("float16", "Data type of the dense weights.")
@device_options
@click.option("--bits", type=float, help="Quantize to so many bits per weight, instead of writing dense weights.")
@click.option("--method", type=click.Choice(list(METHODS)), help="Method of quantization, with --bits.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, without progress.")
def bake_lora(
    model: str,
    loras: tuple[str, ...],
    output: Path,
    base: str | None,
    dtype: str,
    device: str,
    offload: str,
    bits: float | None,
    method: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make LoRAs part of MODEL's weights, each times its SCALE. Write a dense pipeline or, with --bits, a packed one.

    \b
    vqcompress bake-lora sdxl ink.safetensors:0.8 old.safetensors -o out/sdxl-ink
    vqcompress bake-lora sdxl style.safetensors --bits 3 -o out/sdxl-style-vq3
    """
    import torch

    from vqcompress.architectures import open_pipeline
    from vqcompress.architectures.lora_baking import ScaledLora, bake
    from vqcompress.checkpoint.local_names import forget_local_names
    from vqcompress.checkpoint.publication import check_target, publish

    _refuse_idle_options(bits is not None)
    placement = None if bits is None else chosen_placement(device, "auto", offload, quiet=as_json)
    scaled = [ScaledLora.parse(text) for text in loras]
    for lora in scaled:
        lora.arguments()  # files are looked at before a model is opened
    check_target(output, overwrite)
    baked = f"{len(scaled)} {'LoRA' if len(scaled) == 1 else 'LoRAs'} baked in"
    with StageProgress(quiet=as_json) as progress:
        with one_step(progress, "open", model):
            pipeline = open_pipeline(model, base=base)
            bake(pipeline, scaled)
        if bits is not None:
            from vqcompress.compression import quantize

            changes: dict[str, Any] = {"bits": bits} | ({"method": method} if method else {})
            quantize(pipeline, output, overwrite=overwrite, device=placement, progress=progress, **changes)
            say_written(output, f"{baked}, {bits:g} bits per weight", as_json)
            return
        pipeline.to(getattr(torch, dtype))
        with publish(output, overwrite) as partial:
            pipeline.save_pretrained(partial, safe_serialization=True)
            forget_local_names(partial)
    say_written(output, f"{baked}, dense weights in {dtype}", as_json)


def _refuse_idle_options(quantizes: bool) -> None:
    """Raise `RecipeError` for an option that was given and changes nothing."""
    from vqcompress.errors import RecipeError

    given = click.get_current_context().get_parameter_source
    idle = ("dtype",) if quantizes else ("method", "device", "offload")
    for name in idle:
        if given(name) == ParameterSource.COMMANDLINE:
            instead = (
                "dense weights: leave out --bits or it" if quantizes else "quantizing: give --bits too, or leave it out"
            )
            raise RecipeError(f"--{name} is for {instead}")
