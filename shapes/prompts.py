"""`python -m vqcompress.shapes.prompts FILE`: write the calibration captions, one per line."""

from __future__ import annotations

from pathlib import Path

import click

from vqcompress.shapes.classes import CLASSES
from vqcompress.shapes.posters import scenes as posters
from vqcompress.shapes.scenes import calibration_captions


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", default=640, show_default=True)
@click.option("--seed", default=11, show_default=True)
@click.option(
    "--of",
    "kind",
    type=click.Choice(["scenes", "posters", "classes"]),
    default="scenes",
    show_default=True,
    help="`classes`: every class of `shapes-moe` instead, in order.",
)
def main(file: Path, count: int, seed: int, kind: str) -> None:
    """Write COUNT distinct captions of the calibration split to FILE."""
    captions = {"scenes": calibration_captions, "posters": posters.calibration_captions}
    file.write_text("\n".join(captions[kind](count, seed) if kind in captions else CLASSES) + "\n")


if __name__ == "__main__":
    main()
