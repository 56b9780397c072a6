"""The sentences of the report, the same in every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vqcompress.report.comparison import Comparison, Share, Variant
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
"""The question that an image passes if it passes all others."""


def overall(shares: Mapping[str, Share]) -> Share | None:
    """Caption accuracy: the share of the question ``all``, else of the first; None without questions."""
    return shares.get(OVERALL) or next(iter(shares.values()), None)


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
        f"Given the original's inputs, its output has a relative mean squared error of "
        f"{percent_short(variant.denoiser_error)}. With the same seeds, its images reach {decibel(variant.psnr)} PSNR "
        "against the original's."
    )


def _captions(comparison: Comparison, variant: Variant) -> Iterator[str]:
    mine, original = overall(variant.caption_accuracy), overall(comparison.original.caption_accuracy)
    if mine and original:
        yield (
            f"{whole_percent(mine.share)} of them show what their caption says (95{SPACE}% interval "
            f"{interval(mine)}{SPACE}%), against {whole_percent(original.share)} of the original's "
            f"({interval(original)}{SPACE}%)."
        )


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
        KeyFigure("Denoiser error", *_parts(percent_short(variant.denoiser_error)), "relative MSE"),
        KeyFigure("PSNR", fixed(variant.psnr, 1), "dB", f"SSIM {fixed(variant.ssim, 3)}"),
    ]
    share, reference = overall(variant.caption_accuracy), overall(original.caption_accuracy)
    if share and reference:
        remark = f"95 %: {interval(share)}, original {whole_percent(reference.share)}"
        figures.append(KeyFigure("Caption accuracy", f"{100 * share.share:.0f}", "%", remark))
    return figures


def _parts(text: str) -> tuple[str, str]:
    value, _, unit = text.partition(SPACE)
    return value, unit


SHOWN_LAYERS = 4
"""Names that a sentence lists before it only counts the rest."""


def layer_notes(comparison: Comparison) -> list[str]:
    """Layers that were left dense, saw too few samples or have a scalar code; how many outliers there are."""
    notes = []
    for variant in comparison.variants:
        if dense := variant.dense_layers:
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
        "PSNR is over all pixels together, SSIM is the mean over images.",
        f"Denoiser error: Σ‖ŷ − y‖² / Σ‖y‖² over {settings.denoiser_calls} denoiser calls recorded while the original "
        f"drew {settings.trajectory_prompts} images. Every variant gets the original's inputs, so errors do not "
        "accumulate.",
        f"Layer error: relative mean squared error of a layer's output, with {settings.layer_inputs}.",
        "At equal bytes: between two measured sizes of a scalar code, the logarithm of its error is interpolated "
        "linearly in the bytes. Nothing is extrapolated: beyond the measured sizes, a variant is better only than a "
        "larger one with more error, and worse only than a smaller one with less. A vector code with the same bits in "
        "every layer is compared with scalar codes that have the same bits in every layer, one with allocated bits "
        "with all of them.",
    ]
    if comparison.original.caption_accuracy:
        sentences.append(
            "Caption accuracy: the share of images in which a detector finds all that the caption says, with Wilson's "
            f"95{SPACE}% interval."
        )
    sentences.append(
        "Time: wall-clock time relative to the original, in this run on this machine. It is only an indication."
    )
    if settings.versions:
        sentences.append(f"Made with {', '.join(f'{name} {number}' for name, number in settings.versions.items())}.")
    return sentences
