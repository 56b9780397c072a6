"""`vqcompress bundle DIR -o FILE`"""

from __future__ import annotations

from pathlib import Path

import click

from vqcompress.cli.written import say_written


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write.")
@click.option("--no-verify", is_flag=True, help="Open FOLDER without comparing it with its manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bundle(folder: Path, output: Path, no_verify: bool, as_json: bool) -> None:
    """Write the compressed pipeline in FOLDER as one .safetensors file, byte for byte.

    After `import vqcompress`, diffusers opens it with from_single_file, as in
    `StableDiffusionXLPipeline.from_single_file(FILE)`. `vqcompress generate` and `vqcompress dequantize` open it too.
    The folder's files are compared with its manifest first (SHA-256).
    """
    from vqcompress.checkpoint import bundle as write

    written = write(folder, output, verified=not no_verify)
    say_written(written, f"{written.stat().st_size / 1e6:.2f} MB, for from_single_file", as_json)
