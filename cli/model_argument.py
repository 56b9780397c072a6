"""The argument MODEL, with the models' names where the shell asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The known names that begin like ``incomplete``, and beside them whatever folder the shell finds."""
    from vqcompress.architectures.published import PUBLISHED
    from vqcompress.embedded import EMBEDDED

    names = [CompletionItem(name) for name in (*EMBEDDED, *PUBLISHED) if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def model_argument(required: bool = True) -> Callable[[Any], Any]:
    """The argument ``model``."""
    return click.argument("model", required=required, shell_complete=_names)
