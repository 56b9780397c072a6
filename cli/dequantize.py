"""`vqcompress dequantize DIR -o DIR2`"""

from __future__ import annotations

from pathlib import Path

import click

from vqcompress.cli.dtype_option import dtype_option
from vqcompress.cli.progress import silence_other_bars
from vqcompress.cli.written import say_written


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder or .safetensors file to write.",
)
@dtype_option("float16", "Data type of the dense weights.")
@click.option(
    "--layout",
    type=click.Choice(["diffusers", "ldm"]),
    help="Names of the tensors in a file: those of Stable Diffusion's original files (ldm) or those of diffusers "
    "[default: ldm, for models that have such names].",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def dequantize(folder: Path, output: Path, dtype: str, layout: str | None, overwrite: bool, as_json: bool) -> None:
    """Decode FOLDER's weights and write them as a dense pipeline.

    Use it for programs that do not know vqcompress, and for operations that need dense weights, such as fusing a LoRA.

    \b
    vqcompress dequantize out/sdxl-vq3 -o out/sdxl-dense
    vqcompress dequantize out/sdxl-vq3 -o sdxl-dense.safetensors
    """
    import torch

    from vqcompress.checkpoint import dequantize as expand

    silence_other_bars()
    written = expand(folder, output, dtype=getattr(torch, dtype), overwrite=overwrite, layout=layout)  # type: ignore[arg-type]
    say_written(Path(written), f"dense weights in {dtype}", as_json)
