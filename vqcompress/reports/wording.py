"""The sentences of the report, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vqcompress.metrics import overall
from vqcompress.metrics.bootstrap import RESAMPLINGS
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.formatting import (
    SPACE,
    decibel,
    fixed,
    interval,
    percent_short,
    points,
    significant,
    size,
    span,
    whole_percent,
)
from vqcompress.reports.variant import Variant

TABLE_NOTE = (
    "Size and error are the denoiser's. Intervals are 95 % bootstrap intervals over images; signal to error is the "
    "same error in dB."
)

PEERS_NOTE = (
    "Other packages: each quantized the weights of the same layers itself; the denoiser then ran with what it decodes "
    "to, so their time is not measured. Their size is that of the format's own stored tensors, the layers that it "
    "cannot take and all other tensors at 16 bits."
)


def smaller(comparison: Comparison, variant: Variant) -> float:
    """How many times smaller the denoiser is than at 16 bits per weight."""
    return 2 * comparison.original.denoiser_weights / variant.denoiser_bytes


def title(comparison: Comparison) -> str:
    """``shapes at 3.05 bits per weight``."""
    return f"{comparison.model} at {comparison.variants[0].bits_per_weight:.2f} bits per weight"


def summary(comparison: Comparison) -> str:
    """What the first variant saves and loses, in a few sentences."""
    variant = comparison.variants[0]
    return " ".join([_saving(comparison, variant), _loss(variant), *_captions(comparison, variant)])


def _saving(comparison: Comparison, variant: Variant) -> str:
    return (
        f"{variant.label} stores the {comparison.denoiser} in {size(variant.denoiser_bytes)}, "
        f"{significant(smaller(comparison, variant), 2)} times smaller than at 16 bits."
    )


def _loss(variant: Variant) -> str:
    return (
        "Given the original's inputs, its output has a relative squared error of "
        f"{percent_short(variant.denoiser_error)}, which is {decibel(variant.signal_to_error)} from signal to error. "
        f"{_images(variant)}"
    )


def _images(variant: Variant) -> str:
    found = variant.psnr_median
    if found is None:
        return f"With the same seeds, its images have a median PSNR of {decibel(variant.image_metrics['psnr_median'])}."
    return (
        f"With the same seeds, its images have a median PSNR of {decibel(found.value)} against the original's "
        f"(95{SPACE}% interval {span(found, 1)}{SPACE}dB, {found.count} images); the worst has "
        f"{decibel(variant.image_metrics['psnr_worst'])}."
    )


def _captions(comparison: Comparison, variant: Variant) -> Iterator[str]:
    mine, original = overall(variant.caption_accuracy), overall(comparison.original.caption_accuracy)
    if mine and original:
        yield (
            f"{whole_percent(mine.share)} of them show what their caption says (95{SPACE}% interval "
            f"{interval(mine)}{SPACE}%), against {whole_percent(original.share)} of the original's "
            f"({interval(original)}{SPACE}%){_captions_gap(comparison, variant)}."
        )


def _captions_gap(comparison: Comparison, variant: Variant) -> str:
    found = variant.captions_against(comparison.original.right_images)
    if found is None:
        return ""
    said = "differ" if found.excludes(0.0) else "do not differ"
    return f": on the same images the two {said} ({points(found)})"


@dataclass(frozen=True)
class KeyFigure:
    """A number for the first screen: its name, value and unit, and a number to compare it with."""

    name: str
    value: str
    unit: str
    remark: str


def key_figures(comparison: Comparison) -> list[KeyFigure]:
    """The few numbers that say how small the first variant is, and at what loss."""
    variant, original = comparison.variants[0], comparison.original
    figures = [
        KeyFigure("Bits per quantized weight", fixed(variant.bits_per_weight, 2), "", "with scales and codebooks"),
        KeyFigure(
            "Denoiser on disk", *_parts(size(variant.denoiser_bytes)), f"original {size(original.denoiser_bytes)}"
        ),
        KeyFigure(
            "Denoiser error",
            *_parts(percent_short(variant.denoiser_error)),
            f"squared; {decibel(variant.signal_to_error)} signal to error",
        ),
        _psnr_figure(variant),
        *_cost_figures(comparison, variant),
    ]
    share, reference = overall(variant.caption_accuracy), overall(original.caption_accuracy)
    if share and reference:
        remark = f"95 %: {interval(share)}, original {whole_percent(reference.share)}"
        figures.append(KeyFigure("Caption accuracy", f"{100 * share.share:.0f}", "%", remark))
    return figures


def _psnr_figure(variant: Variant) -> KeyFigure:
    found = variant.psnr_median
    value = found.value if found else variant.image_metrics["psnr_median"]
    remark = f"95 %: {span(found, 1)}, {found.count} images" if found else f"SSIM {fixed(variant.ssim, 3)}"
    return KeyFigure("Median PSNR", fixed(value, 1), "dB", remark)


def _cost_figures(comparison: Comparison, variant: Variant) -> Iterator[KeyFigure]:
    """Time and memory, where they were measured."""
    if not math.isnan(variant.time_ratio):
        seconds = significant(comparison.original.seconds_per_image, 2)
        yield KeyFigure("Time", fixed(variant.time_ratio, 2), "×", f"the original's {seconds}{SPACE}s an image here")
    if variant.memory_bytes:
        before = size(comparison.original.memory_bytes)
        yield KeyFigure("Weights in memory", *_parts(size(variant.memory_bytes)), f"original {before} as loaded")


def _parts(text: str) -> tuple[str, str]:
    value, _, unit = text.partition(SPACE)
    return value, unit


SHOWN_LAYERS = 4
"""Names that a sentence lists before it only counts the rest."""


def layer_notes(comparison: Comparison) -> list[str]:
    """Layers that were left dense, saw too few samples or have a scalar code; how many outliers there are."""
    notes = []
    for variant in comparison.variants:
        if variant.peer:
            notes.append(f"{variant.label}: made by {variant.peer}.")
        if (dense := variant.dense_layers) and variant.peer:
            why = "do not fit its format" + (", or have errors that cost more than bits," if variant.allocated else "")
            notes.append(f"{variant.label}: {_count(dense)} {why} and stayed dense ({_some(dense)}).")
        elif dense:
            notes.append(
                f"{variant.label}: {_count(dense)} stayed dense ({_some(dense)}); their bytes are counted. Their error "
                "would cost the output more than their bits are worth, or no code fits them."
            )
        if few := variant.undersampled_layers:
            notes.append(
                f"{variant.label}: {_count(few)} saw fewer samples in calibration than they have columns "
                f"({_some(few)}). They borrowed their second moment from the same layer of other experts or from white "
                "noise. More calibration prompts would help."
            )
        if scalar := variant.scalar_layers:
            notes.append(
                f"{variant.label}: {_count(scalar)} with a scalar code ({_some(scalar)}), which had less error than "
                "the vector code in no more bytes."
            )
        if variant.outliers:
            beyond = f"{variant.outliers} weights beyond the codes' range"
            notes.append(f"{variant.label}: {beyond} are stored beside them in 16 bits.")
    return notes


def _count(layers: tuple[str, ...]) -> str:
    return f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'}"


def _some(layers: tuple[str, ...]) -> str:
    more = len(layers) - SHOWN_LAYERS
    return ", ".join(layers[:SHOWN_LAYERS]) + (f" and {more} more" if more > 0 else "")


def measured(comparison: Comparison) -> list[str]:
    """How each number was measured, in a sentence or two."""
    settings = comparison.settings
    sentences = [
        "Sizes are bytes on disk. Bits per quantized weight count all that the quantized layers store: codes, "
        "codebooks, scales, rates and zero points. Bits of the whole denoiser divide its file by all its weights, "
        "dense layers included.",
        f"Images: {len(settings.prompts)} prompts ({settings.prompt_source}), {settings.steps} steps, guidance "
        f"{settings.guidance:g}. Image i starts from seed {settings.seed} + i, in the original and in every variant. "
        "PSNR and SSIM (Gaussian window of 11 pixels) are computed for each image in float64 on values in 0..1; "
        "identical images have an infinite PSNR. Images are numbered from 1 in the order of the prompts.",
        f"Intervals: 95{SPACE}% percentile intervals of {RESAMPLINGS} bootstrap resamplings of the images, from a "
        "fixed seed. Two variants are compared on the same resampled images (paired). 'Differs' means that the "
        "interval excludes no difference; 'does not differ' means that it does not, not that both are equal.",
        f"Denoiser error: Σ‖ŷ − y‖² / Σ‖y‖² over {settings.denoiser_calls} denoiser calls recorded while the original "
        f"drew {settings.trajectory_prompts} images. Every variant gets the original's inputs, so errors do not "
        "accumulate. It is a ratio of squares; signal to error is -10 log10 of it, in dB. Its interval is over those "
        "images.",
        "Latents' error: the relative squared error of what the denoiser is given at the last step when every pipeline "
        f"follows its own trajectory, with guidance {settings.guidance:g}, from the same seeds; over the first images.",
        f"Layer error: relative mean squared error of a layer's output, with {settings.layer_inputs}.",
        "Verdicts: nothing is interpolated. Each vector code is compared with its two neighbours in bytes among the "
        "scalar codes and other packages' formats that no other of them beats: the next larger and the next smaller "
        "one. It is better if the larger one has more error and a lower PSNR, worse if the smaller one has less and a "
        "higher one, better in one only where the other does not differ; otherwise both are shown. Codes with the same "
        "bits in every layer are compared with such, codes with allocated bits with such.",
    ]
    if comparison.original.caption_accuracy:
        judged = (
            "Caption accuracy: the share of images in which a detector finds all that the caption says, with Wilson's "
            f"95{SPACE}% interval."
        )
        paired = " Points of it over another's are paired, as above." if comparison.original.right_images else ""
        sentences.append(judged + paired)
    sentences.append(
        "Time: wall-clock time of drawing all images relative to the original, in this run on this machine; only an "
        "indication. Memory: parameters and buffers of the denoiser as loaded, without activations."
    )
    if any(variant.peer for variant in comparison.variants):
        sentences.append(PEERS_NOTE)
    if settings.machine:
        sentences.append(f"Machine: {settings.machine}.")
    if settings.versions:
        sentences.append(f"Made with {', '.join(f'{name} {number}' for name, number in settings.versions.items())}.")
    return sentences
