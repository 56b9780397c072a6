"""`python -m vqcompress.shapes.prompts FILE`: write the calibration captions, one a line."""

from __future__ import annotations

from pathlib import Path

import click

from vqcompress.shapes.scenes import calibration_captions


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", default=640, show_default=True)
@click.option("--seed", default=11, show_default=True)
def main(file: Path, count: int, seed: int) -> None:
    """Write COUNT distinct captions of the calibration split to FILE."""
    file.write_text("\n".join(calibration_captions(count, seed)) + "\n")


if __name__ == "__main__":
    main()
