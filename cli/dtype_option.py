"""The option ``--dtype`` of several verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DTYPES = ("float16", "bfloat16", "float32")


def dtype_option(default: str, what: str) -> Callable[[Any], Any]:
    """``--dtype``, a name of `DTYPES`; ``what`` is its help."""
    return click.option("--dtype", type=click.Choice(DTYPES), default=default, show_default=True, help=what)
