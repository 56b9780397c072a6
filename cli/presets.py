"""`vqcompress presets`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from vqcompress.architectures.known_names import perhaps_meant
from vqcompress.architectures.published import PUBLISHED, class_of_pipeline, coded_weights, synonyms
from vqcompress.embedded import EMBEDDED
from vqcompress.errors import RecipeError


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def presets(words: tuple[str, ...], as_json: bool) -> None:
    """List the models that have a name here. With WORDS, only those whose line contains all of them, with sources.

    Models from the Hub open by name: `vqcompress quantize sdxl -o out`. For models marked "convert", download the
    official weights and run `vqcompress convert NAME FILE -o FOLDER`. `vqcompress quantize NAME --dry-run` works for
    all of them, without weights. Sizes are the denoisers' (all that run at every step). A * stands for a licence that
    forbids commercial use, a – for one that is not known here.

    \b
    vqcompress presets
    vqcompress presets flux
    """
    rows = [row for row in _rows() if all(word.lower() in " ".join(map(str, row.values())).lower() for word in words)]
    if not rows:
        wanted = " ".join(words)
        raise RecipeError(
            f"no published model matches {wanted!r}; {perhaps_meant(wanted) or '`vqcompress presets` lists all'}"
        )
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(_table(rows, with_source=bool(words))))


def _rows() -> list[dict[str, Any]]:
    coded = coded_weights()
    embedded: Iterator[dict[str, Any]] = (
        {
            "name": name, "also": [], "parameters": None, "class": "", "licence": "Apache-2.0", "commercial": True,
            "bytes_at_3_bits": None, "source": "embedded, needs no download",
        }
        for name in EMBEDDED
    )  # fmt: skip
    named = (
        {
            "name": name,
            "also": list(synonyms(name)),
            "parameters": row.parameters,
            "class": class_of_pipeline(name),
            "licence": row.licence,
            "commercial": row.commercial,
            "bytes_at_3_bits": 2 * (row.parameters - coded[name]) + 3 * coded[name] // 8,
            "source": row.source,
        }
        for name, row in PUBLISHED.items()
    )
    return [*embedded, *named]


def _table(rows: list[dict[str, Any]], *, with_source: bool) -> Iterator[str]:
    """Lines of at most 80 letters, save those with sources."""
    yield f"{'name':<20} {'weights':>7}  {'class':<24} {'licence':<16} {'3 bits':>7}"
    for row in rows:
        kind = row["class"].removesuffix("Pipeline").removesuffix("Model")
        licence = (row["licence"] or "–") + " *" * (not row["commercial"])
        weights, size = _short(row["parameters"], ("M", "B")), _short(row["bytes_at_3_bits"], ("MB", "GB"))
        yield f"{row['name']:<20} {weights:>7}  {kind:<24} {licence:<16} {size:>7}".rstrip()
        if with_source:
            also = f" (also {', '.join(row['also'])})" if row["also"] else ""
            yield f"  {row['source']}{also}"
    if not all(row["commercial"] for row in rows):
        yield "* no commercial use"


def _short(count: int | None, units: tuple[str, str]) -> str:
    """Three digits of a count in millions or in thousands of millions."""
    if count is None:
        return ""
    number, unit = (count / 1e6, units[0]) if count < 1e9 else (count / 1e9, units[1])
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"
