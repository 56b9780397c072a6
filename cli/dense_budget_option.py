"""The option ``--dense-budget`` of the verbs that draw with packed models."""

from __future__ import annotations

from typing import Any

import click


def _checked(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from vqcompress.layers.dense_budget import parse_budget

    parse_budget(value)
    return value


def dense_budget_option(command: Any) -> Any:
    """``--dense-budget``: what `vqcompress.set_dense_budget` takes, as text."""
    return click.option(
        "--dense-budget",
        default="0",
        show_default=True,
        callback=_checked,
        help="Memory for decoded weights that are kept between steps, for the same images sooner: 4GB, all, 0.",
    )(command)
