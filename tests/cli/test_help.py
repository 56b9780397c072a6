"""Help fits a terminal of 80 columns, examples included."""

from __future__ import annotations

import click
import pytest

from vqcompress.cli.main import main

VERBS = main.list_commands(click.Context(main))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns(verb: str) -> None:
    command = main.get_command(click.Context(main), verb) if verb else main
    assert command is not None
    context = click.Context(command, info_name=f"vqcompress {verb}".strip(), terminal_width=80, max_content_width=80)
    lines = command.get_help(context).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) > 8
