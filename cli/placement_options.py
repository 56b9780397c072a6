"""The options ``--device``, ``--dtype`` and ``--offload`` of verbs that compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vqcompress.placement import Placement

DTYPES = ("auto", "float32", "bfloat16", "float16")
OFFLOADS = ("auto", "none", "model", "group", "sequential")


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--device`` and ``--offload``, as ``device`` and ``offload``."""
    command = click.option(
        "--offload",
        type=click.Choice(OFFLOADS),
        default="auto",
        show_default=True,
        help="What of the weights is on the device at a time: all (none), the component that runs (model), the block "
        "(group) or the layer (sequential); auto is the first of none, model and group that fits.",
    )(command)
    return click.option(
        "--device",
        metavar="[auto|cpu|cuda[:N]|mps|xpu]",
        default="auto",
        show_default=True,
        help="Where the model runs; auto takes the accelerator, where there is one.",
    )(command)


def placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`device_options`, and ``--dtype`` as ``dtype``."""
    command = click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="Data type of the computation; auto is float32 on the CPU and the checkpoint's elsewhere.",
    )(command)
    return device_options(command)


def chosen_placement(device: str, dtype: str, offload: str, *, quiet: bool = False) -> Placement:
    """What the options say, named in the first line of output unless ``quiet``.

    Raises `RecipeError` for what this machine does not have.
    """
    from vqcompress.placement import Placement

    placement = Placement.parse(device, dtype, offload)
    if not quiet:
        click.echo(f"device: {placement.sentence()}")
    return placement
