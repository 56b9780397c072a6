"""The sentences of the report, the same in every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vqcompress.report.comparison import Comparison, Row, Share
from vqcompress.report.formatting import (
    SPACE,
    decibel,
    fixed,
    interval,
    percent_short,
    significant,
    size,
    whole_percent,
)

OVERALL = "all"
"""The judge's question that stands for all the others."""


def overall(alignment: Mapping[str, Share]) -> Share | None:
    """The share that sums a judge's answers up: the question ``all``, else the first."""
    return alignment.get(OVERALL) or next(iter(alignment.values()), None)


def smaller(comparison: Comparison, row: Row) -> float:
    """How many times smaller the denoiser is than at 16 bits a weight."""
    return 2 * comparison.original.denoiser_weights / row.denoiser_bytes


def title(comparison: Comparison) -> str:
    """``shapes at 3.05 bits a weight``."""
    return f"{comparison.model} at {comparison.rows[0].bits_per_weight:.2f} bits a weight"


def summary(comparison: Comparison) -> str:
    """What the first variant costs and saves, in a few sentences."""
    row = comparison.rows[0]
    return " ".join([_saving(comparison, row), _loss(row), *_captions(comparison, row)])


def _saving(comparison: Comparison, row: Row) -> str:
    return (
        f"{row.label} stores the {comparison.denoiser} in {size(row.denoiser_bytes)}, "
        f"{significant(smaller(comparison, row), 2)} times smaller than at 16 bits."
    )


def _loss(row: Row) -> str:
    return (
        f"On the original's own inputs its output is off by {percent_short(row.denoiser_error)} (relative mean squared "
        f"error); under the same seeds its images match the original's to {decibel(row.psnr)} PSNR."
    )


def _captions(comparison: Comparison, row: Row) -> Iterator[str]:
    mine, original = overall(row.alignment), overall(comparison.original.alignment)
    if mine and original:
        yield (
            f"{whole_percent(mine.share)} of them show what the caption says (95\N{NO-BREAK SPACE}% interval {interval(mine)}{SPACE}%); "
            f"of the original's, {whole_percent(original.share)} do ({interval(original)}{SPACE}%)."
        )


@dataclass(frozen=True)
class KeyFigure:
    """A number for the first screen: what it is, how much, and what it is to be measured by."""

    name: str
    value: str
    unit: str
    remark: str


def key_figures(comparison: Comparison) -> list[KeyFigure]:
    """The few numbers that answer the question: how small, at what loss?"""
    row, original = comparison.rows[0], comparison.original
    figures = [
        KeyFigure("Bits a quantized weight", fixed(row.bits_per_weight, 2), "", "everything stored counted"),
        KeyFigure("Denoiser on disk", *_parts(size(row.denoiser_bytes)), f"original {size(original.denoiser_bytes)}"),
        KeyFigure("Denoiser error", *_parts(percent_short(row.denoiser_error)), "relative MSE"),
        KeyFigure("PSNR", fixed(row.psnr, 1), "dB", f"SSIM {fixed(row.ssim, 3)}"),
    ]
    share, reference = overall(row.alignment), overall(original.alignment)
    if share and reference:
        remark = f"95 %: {interval(share)}, original {whole_percent(reference.share)}"
        figures.append(KeyFigure("Right images", f"{100 * share.share:.0f}", "%", remark))
    return figures


def _parts(text: str) -> tuple[str, str]:
    value, _, unit = text.partition(SPACE)
    return value, unit


SHOWN_LAYERS = 4
"""Names that a sentence gives before it only counts."""


def layer_notes(comparison: Comparison) -> list[str]:
    """What a mean over layers does not tell: those left dense by the budget, and those that saw too few inputs."""
    notes = []
    for row in comparison.rows:
        if row.dense_layers:
            notes.append(
                f"{row.label}: {_some(row.dense_layers)} left dense by the model's budget, their bytes counted: their error "
                "would cost the output more than their bits."
            )
        if row.starved_layers:
            notes.append(
                f"{row.label}: {_some(row.starved_layers)} saw fewer inputs in calibration than they have columns, and borrowed "
                "their second moment from sibling layers or from white noise; more calibration prompts would help them."
            )
    return notes


def _some(layers: tuple[str, ...]) -> str:
    more = len(layers) - SHOWN_LAYERS
    listed = ", ".join(layers[:SHOWN_LAYERS]) + (f" and {more} more" if more > 0 else "")
    return f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'} ({listed})"


def measured(comparison: Comparison) -> list[str]:
    """How every number came about, a sentence or two each."""
    settings = comparison.settings
    sentences = [
        "Sizes are bytes on disk. Bits a quantized weight count all that the quantized layers store: codes, codebooks, "
        "scales, rates and zero points. Whole-denoiser bits divide the whole file by all weights, dense layers included.",
        f"Images: {len(settings.prompts)} prompts ({settings.prompt_source}), {settings.steps} steps, guidance "
        f"{settings.guidance:g}; image i starts from seed {settings.seed} + i, in the original and in every variant. PSNR is "
        "over all pixels together, SSIM the mean over images.",
        f"Denoiser error: Σ‖ŷ − y‖² / Σ‖y‖² over {settings.denoiser_calls} denoiser calls recorded while the original drew "
        f"{settings.trajectory_prompts} images; every variant gets the original's inputs, so errors do not build up.",
        f"Layer error: squared error of a layer's output relative to the output, with {settings.layer_inputs}.",
        "At equal bytes: between two measured sizes of a scalar code the logarithm of its error is taken as linear in the "
        "bytes. Beyond the measured sizes nothing is extrapolated: there a variant only wins over a larger and worse one, "
        "or loses to a smaller and better one. A vector code with the same bits in every layer is held against scalar codes "
        "of the same kind, one whose bits are dealt out against all.",
    ]
    if comparison.original.alignment:
        sentences.append("Right images: a judge answers for each image; intervals are Wilson's.")
    sentences.append("Time: wall clock relative to the original in this run on this machine, an indication only.")
    if settings.versions:
        sentences.append(f"Made with {', '.join(f'{name} {number}' for name, number in settings.versions.items())}.")
    return sentences
