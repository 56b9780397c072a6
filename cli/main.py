"""The `vqcompress` command, a group whose subcommands are imported on first use."""

from __future__ import annotations

import logging
import os
import re
from importlib import import_module
from typing import Any

import click

from vqcompress.errors import VQCompressError
from vqcompress.near_misses import did_you_mean

VERBS = {
    "presets": "List the models that have a name here, with sizes and sources.",
    "convert": "Convert official weights to a folder that quantize takes.",
    "quantize": "Compress a pipeline to a folder that diffusers loads after `import vqcompress`.",
    "finetune": "Fine-tune a compressed folder against its original.",
    "generate": "Generate images with a pipeline, compressed or not.",
    "inspect": "Show the bits, bytes and layers of a compressed folder.",
    "report": "Compare compressed folders with their original.",
    "verify": "Check a compressed folder against its manifest.",
    "dequantize": "Write a dense pipeline from a compressed folder.",
    "bake-lora": "Make LoRAs part of a model's weights, dense or quantized.",
    "bundle": "Write a compressed folder as one file.",
    "push": "Send a compressed folder to the Hub, with a complete card.",
    "env": "Show versions, devices, kernels, and what is missing.",
}


GOES_ON = ("quantize", "finetune")  # verbs that keep what they finished and go on from there


class UserError(click.ClickException):
    """A mistake that the user can correct: one line on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"vqcompress: {' '.join(self.message.split())}", err=True)


class StoppedError(UserError):
    """The user pressed Ctrl-C; the exit code is a shell's for that signal."""

    exit_code = 130


def _hush_imports() -> None:
    """Keep to itself what torch, diffusers and torchao say while they import each other: of extensions for devices that
    are not there, and of each other's deprecated calls. Whoever sets ``DIFFUSERS_VERBOSITY`` hears diffusers."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


class LazyGroup(click.Group):
    """Looks subcommands up in `VERBS`, so that `--help` does not import torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        _hush_imports()
        name = cmd_name.replace("-", "_")
        return getattr(import_module(f"vqcompress.cli.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _in_one_line(error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS:
            near = did_you_mean(args[0], VERBS) or "; vqcompress --help lists what there is"
            raise UserError(f"there is no command {args[0]!r}{near}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error) from None
        except KeyboardInterrupt:
            kept = "what was finished is kept, and the same command goes on from there"
            raise StoppedError(f"stopped; {kept if ctx.invoked_subcommand in GOES_ON else 'start it again'}") from None
        except VQCompressError as error:
            raise UserError(str(error)) from error
        except (OSError, RuntimeError, MemoryError) as error:
            if (message := _of_this_machine(error)) is None:
                raise
            raise UserError(message) from error


def _in_one_line(error: click.UsageError) -> click.ClickException:
    """What click says of a command line, with the nearest choice and the command whose help says more."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    said = error.format_message().rstrip(".").replace(". Did you mean", "; did you mean")
    said = f"{said[:1].lower()}{said[1:]}"
    chosen = isinstance(error, click.BadParameter) and error.param is not None and error.param.type
    if isinstance(chosen, click.Choice) and (value := re.search(r"'([^']*)' is not one of", said)):
        said += did_you_mean(value[1], map(str, chosen.choices))
    where = error.ctx.command_path if error.ctx else "vqcompress"
    return UserError(said if "did you mean" in said else f"{said}; see {where} --help")


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
    vqcompress generate out/shapes-vq3 "three red squares on gray" -o grid.png
    vqcompress report shapes out/shapes-vq3
    """
