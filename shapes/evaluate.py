"""`python -m vqcompress.shapes.evaluate DIR`: caption accuracy of a pipeline, scored by the judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from vqcompress.embedded import EMBEDDED
from vqcompress.shapes.classes import class_captions
from vqcompress.shapes.judge import Rate, score
from vqcompress.shapes.posters import scenes as posters
from vqcompress.shapes.scenes import held_out_captions, monitor_captions

BATCH = 50
SHAPES = EMBEDDED["shapes"]
CAPTION_SETS = {
    "held-out": held_out_captions,
    "monitor": monitor_captions,
    "classes": class_captions,
    "posters": posters.held_out_captions,
    "posters-monitor": posters.monitor_captions,
}


def load_pipeline(folder: str | Path):
    """The pipeline in ``folder``, from local files only, with float32 weights and no progress bar."""
    import torch

    from vqcompress.architectures.folder import dtype_option
    from vqcompress.models.pipelines import pipeline_class

    pipe = pipeline_class(folder).from_pretrained(folder, **dtype_option(torch.float32), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe,
    captions: Sequence[str],
    steps: int = SHAPES.steps,
    guidance: float = SHAPES.guidance,
    seed: int = 0,
) -> np.ndarray:
    """One image per caption: uint8 [n, side, side, 3]; image i starts from seed + i, whatever the batch.

    For a class-conditional pipeline the captions are names of its classes.
    """
    import torch

    images = []
    for start in range(0, len(captions), BATCH):
        texts = list(captions[start : start + BATCH])
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(texts))]
        conditions = [pipe.labels[text] for text in texts] if hasattr(pipe, "labels") else texts
        out = pipe(
            conditions, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="np"
        ).images
        images.append(np.rint(out * 255).astype(np.uint8))
    return np.concatenate(images)


def as_table(rates: dict[str, Rate]) -> str:
    """One line per aspect: rate, 95 % interval, counts."""
    lines = []
    for name, rate in rates.items():
        low, high = rate.interval
        lines.append(f"{name:<11}{rate.rate:.3f}  [{low:.3f}, {high:.3f}]  {rate.passed}/{rate.total}")
    return "\n".join(lines)


def as_record(rates: dict[str, Rate]) -> dict[str, dict]:
    """The rates as plain data for JSON."""
    return {k: {"rate": r.rate, "interval": r.interval, "passed": r.passed, "total": r.total} for k, r in rates.items()}


def image_grid(images: np.ndarray, columns: int = 10, zoom: int = 3):
    """PIL image of ``images`` uint8 [n, h, w, 3] side by side, enlarged without smoothing."""
    from PIL import Image

    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, height + 1, width + 1, 3), 200, np.uint8)
    sheet[:n, :height, :width] = images
    sheet = sheet.reshape(rows, columns, height + 1, width + 1, 3).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1), 3)
    return Image.fromarray(sheet).resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.Resampling.NEAREST)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False), default=str(SHAPES.path))
@click.option("--captions", "count", default=200, show_default=True)
@click.option("--caption-set", type=click.Choice(list(CAPTION_SETS)), default="held-out", show_default=True)
@click.option("--steps", default=SHAPES.steps, show_default=True)
@click.option("--guidance", default=SHAPES.guidance, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--grid", type=click.Path(path_type=Path), help="Write the images as one PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(folder, count, caption_set, steps, guidance, seed, grid, as_json):
    """Score the pipeline in FOLDER on captions that are not in its training set.

    With --caption-set classes, score it on its classes.
    """
    texts = CAPTION_SETS[caption_set](count)
    images = generate(load_pipeline(folder), texts, steps, guidance, seed)
    rates = score(images, texts)
    if grid:
        image_grid(images).save(grid)
    click.echo(json.dumps(as_record(rates), indent=2) if as_json else as_table(rates))


if __name__ == "__main__":
    main()
