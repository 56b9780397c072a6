"""Error of layers that see one vector an image, on prompts that were not calibrated on, by how their moment is made.

``python benchmarks/unseen_prompts.py`` calibrates `shapes-moe` on 64 of its 192 classes and quantizes the modulation
layers of its blocks with the trellis: with the moment as it was recorded, with a share of its mean diagonal added, and
cross-validated in 2, 4 and 8 folds (`vqcompress.moments.cross_validation`); and, to see what could be had, with the
moment of the other classes themselves. Errors are relative, of outputs, means over layers: on the classes that were
calibrated on / on all others. A Markdown table goes to standard output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import click
from torch import Tensor

from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.calibration.diversity import choose_diverse
from vqcompress.calibration.prompts import load_prompts
from vqcompress.calibration.record import Component, record_inputs
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.moments.cross_validation import cross_validated
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error

MODEL, LAYER, COUNT, BATCH = "shapes-moe", "adaLN_modulation", 64, 8
SHARES, FOLDS = (0.01, 0.1, 1.0), (2, 4, 8)


@click.command(help=__doc__)
@click.option("--bits", default="2,3,4", show_default=True)
def main(bits: str) -> None:
    pipeline = open_pipeline(MODEL)
    architecture = architecture_of(pipeline)
    denoiser = architecture.module(pipeline, architecture.denoiser)
    layers = [plan.name for plan in architecture.layers(pipeline, architecture.denoiser) if LAYER in plan.name]
    weights = {name: denoiser.get_parameter(f"{name}.weight").detach() for name in layers}
    classes = load_prompts(architecture.prompt_set).prompts
    shown = choose_diverse(classes, COUNT, 0)

    def recorded(prompts: tuple[str, ...], folds: int) -> dict[str, SecondMoment]:
        source = SamplingRun(pipeline, architecture, prompts, 0, batch_size=BATCH)
        watched = Component(architecture, architecture.denoiser, denoiser)
        found = record_inputs(watched, layers, source, folds=folds)
        return {name: moment for names, moment in found for name in names}

    by_folds = {folds: recorded(shown, folds) for folds in FOLDS}
    seen = {name: replace(moment, folds=()) for name, moment in by_folds[FOLDS[0]].items()}
    others = recorded(tuple(name for name in classes if name not in shown), 1)
    widths = [float(width) for width in bits.split(",")]
    click.echo("|moment|" + "|".join(f"{width:g} bits" for width in widths) + "|\n|---|" + "---|" * len(widths))

    def row(label: str, moments: Mapping[str, SecondMoment], damping: float | None = None) -> None:
        settings = TrellisSettings() if damping is None else TrellisSettings(damping=damping)
        cells = []
        for width in widths:
            decoded = {
                name: quantize_weight(weight, moments[name], bits=width, settings=settings).decode()
                for name, weight in weights.items()
            }
            cells.append(" / ".join(f"{mean_error(weights, decoded, moments):.2g}" for moments in (seen, others)))
        click.echo(f"|{label}|" + "|".join(cells) + "|")

    row("as recorded", seen)
    for share in SHARES:
        row(f"as recorded, damping {share:g}", seen, share)
    for folds, moments in by_folds.items():
        row(f"cross-validated, {folds} folds", {name: cross_validated(moment) for name, moment in moments.items()})
    row("that of the others", others)


def mean_error(
    weights: Mapping[str, Tensor], decoded: Mapping[str, Tensor], moments: Mapping[str, SecondMoment]
) -> float:
    """The mean over layers of the relative error of ``decoded`` weights on inputs of these ``moments``."""
    errors = [relative_error(weight, decoded[name], moments[name]) for name, weight in weights.items()]
    return sum(errors) / len(errors)


if __name__ == "__main__":
    main()
