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
    "bake-lora": "Make LoRAs part of a model's weights, dense or quantized.",
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
        name = cmd_name.replace("-", "_")
        return getattr(import_module(f"vqcompress.cli.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VQCompressError as error:
            raise UserError(str(error)) from error
        except (OSError, RuntimeError, MemoryError) as error:
            if (message := _of_this_machine(error)) is None:
                raise
            raise UserError(message) from error


def _of_this_machine(error: OSError | RuntimeError | MemoryError) -> str | None:
    """One line on what the machine refuses, memory, disk, file or network; None for an error of another kind."""
    from vqcompress.disk import write_problem
    from vqcompress.working_memory import is_out_of_memory

    if is_out_of_memory(error):
        return (
            "there is not enough memory; close other programs, or give less to --memory-budget or batches, and run the "
            "same command again: what was finished is kept"
        )
    if isinstance(error, BrokenPipeError) or not isinstance(error, OSError):
        return None
    where, problem = f"{error.filename}: " if error.filename else "", write_problem(error)
    return f"{where}{error.strerror or error}" if problem is None else f"{where}{problem}; what was finished is kept"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vqcompress")
def main() -> None:
    """Compress diffusion models to about 3 bits per weight with calibrated vector codes.

    \b
    vqcompress quantize shapes -o out/shapes-vq3
    vqcompress generate out/shapes-vq3 "three red squares on a gray background" -o grid.png
    vqcompress report shapes out/shapes-vq3
    """
