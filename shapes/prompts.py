"""`python -m vqcompress.shapes.prompts FILE`: write the calibration captions, one per line."""

from __future__ import annotations

from pathlib import Path

import click

from vqcompress.shapes.classes import CLASSES
from vqcompress.shapes.scenes import calibration_captions


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", default=640, show_default=True)
@click.option("--seed", default=11, show_default=True)
@click.option("--classes", is_flag=True, help="Write every class of `shapes-moe` instead, in order.")
def main(file: Path, count: int, seed: int, classes: bool) -> None:
    """Write COUNT distinct captions of the calibration split to FILE."""
    file.write_text("\n".join(CLASSES if classes else calibration_captions(count, seed)) + "\n")


if __name__ == "__main__":
    main()
