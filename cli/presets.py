"""`vqcompress presets`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from vqcompress.errors import RecipeError


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def presets(words: tuple[str, ...], as_json: bool) -> None:
    """List the models that have a name here. With WORDS, list only lines that contain all of them.

    Models from the Hub open by name: `vqcompress quantize sdxl -o out`. For models marked "convert", download the
    official weights and run `vqcompress convert NAME FILE -o FOLDER`. `vqcompress quantize NAME --dry-run` works for
    all of them, without weights. Sizes are the denoiser's.

    \b
    vqcompress presets
    vqcompress presets dit-moe
    """
    rows = [row for row in _rows() if all(word.lower() in " ".join(map(str, row.values())).lower() for word in words)]
    if not rows:
        raise RecipeError(f"no published model matches {' '.join(words)!r}; `vqcompress presets` lists all")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        also = f"  (also {', '.join(row['also'])})" if row["also"] else ""
        size = f"{row['parameters'] / 1e6:,.1f} M" if row["parameters"] else ""
        click.echo(f"{row['name']:<{width}}  {size:>10}  {row['source']}{also}")


def _rows() -> list[dict[str, Any]]:
    from vqcompress.architectures.published import PUBLISHED, synonyms
    from vqcompress.embedded import EMBEDDED

    embedded: Iterator[dict[str, Any]] = (
        {"name": name, "also": [], "parameters": None, "source": "embedded, needs no download"} for name in EMBEDDED
    )
    named = (
        {"name": name, "also": list(synonyms(name)), "parameters": row.parameters, "source": row.source}
        for name, row in PUBLISHED.items()
    )
    return [*embedded, *named]
