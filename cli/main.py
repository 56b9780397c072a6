"""The `vqcompress` command, a group whose subcommands are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from vqcompress.errors import VQCompressError

VERBS = {
    "presets": "List the models that have a name here, with sizes and sources.",
    "convert": "Convert official weights to a folder that quantize takes.",
    "quantize": "Compress a pipeline to a folder that plain diffusers loads.",
    "finetune": "Fine-tune a compressed folder against its original.",
    "generate": "Generate images with a pipeline, compressed or not.",
    "inspect": "Show the bits, bytes and layers of a compressed folder.",
    "report": "Compare compressed folders with their original.",
    "verify": "Check a compressed folder against its manifest.",
    "dequantize": "Write a dense pipeline from a compressed folder.",
    "bundle": "Write a compressed folder as one file.",
}


class UserError(click.ClickException):
    """A mistake that the user can correct: one line on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"vqcompress: {' '.join(self.message.split())}", err=True)


class LazyGroup(click.Group):
    """Looks subcommands up in `VERBS`, so that `--help` does not import torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return getattr(import_module(f"vqcompress.cli.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VQCompressError as error:
            raise UserError(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vqcompress")
def main() -> None:
    """Compress diffusion models to about 3 bits per weight with calibrated vector codes.

    \b
    vqcompress quantize shapes -o out/shapes-vq3
    vqcompress generate out/shapes-vq3 "three red squares on a gray background" -o grid.png
    vqcompress report shapes out/shapes-vq3
    """
