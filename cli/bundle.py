"""`vqcompress bundle DIR -o FILE`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write, ending in .safetensors."
)
def bundle(folder: Path, output: Path) -> None:
    """Put the compressed pipeline in FOLDER into one .safetensors file, byte for byte.

    After `import vqcompress`, diffusers opens it with `StableDiffusionXLPipeline.from_single_file(FILE)` and the like;
    `vqcompress generate` and `dequantize` take it too.
    """
    from vqcompress.bundle import write_bundle
    from vqcompress.errors import RecipeError

    if output.suffix != ".safetensors":
        raise RecipeError(f"a bundle is one .safetensors file, got {output}")
    written = write_bundle(folder, output)
    click.echo(f"{written}: {written.stat().st_size / 1e6:.2f} MB, for from_single_file")
