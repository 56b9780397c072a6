"""The last words of a verb that writes one file or folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vqcompress.component_files import bytes_below


def say_written(output: Path, text: str, as_json: bool) -> None:
    """``text`` after the path or, ``as_json``, the path and the bytes that lie there."""
    size = output.stat().st_size if output.is_file() else bytes_below(output)
    click.echo(json.dumps({"output": str(output), "bytes": size}) if as_json else f"{output}: {text}")
