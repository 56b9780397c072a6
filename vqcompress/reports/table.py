"""The table of all variants: its columns, and how each number is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vqcompress.metrics import overall, signal_to_error_db
from vqcompress.reports.comparison import ORIGINAL, Comparison, Original
from vqcompress.reports.formatting import (
    NONE,
    SPACE,
    fixed,
    interval,
    megabytes,
    percent,
    percent_decimals,
    signed_span,
    span,
    whole_percent,
)
from vqcompress.reports.variant import Share, Variant


@dataclass(frozen=True)
class Cell:
    """A number as text, with a smaller remark beside it."""

    text: str
    remark: str = ""


@dataclass(frozen=True)
class Line:
    """One variant's cells, in the order of the headings; ``curve`` is empty for the original."""

    label: str
    curve: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Heading:
    """A column's name, with its unit or a qualification below."""

    name: str
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """Headings without the label's column, and a line for the original and for each variant."""

    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]


def variants_table(comparison: Comparison) -> Table:
    """The comparison's numbers, a line for each pipeline. Within a column, all numbers have the same decimals."""
    original = comparison.original
    absent = [] if overall(original.caption_accuracy) else [CAPTIONS]
    absent += [] if original.right_images else [CAPTIONS_GAINED]
    columns = [column for column in COLUMNS if column not in absent]
    context = Context(
        denoiser=percent_decimals(variant.denoiser_error for variant in comparison.variants),
        layer=percent_decimals(variant.layer_error_mean for variant in comparison.variants),
        right_images=original.right_images,
    )
    lines = [
        Line(variant.label, variant.curve, tuple(column.of_variant(variant, context) for column in columns))
        for variant in comparison.variants
    ]
    first = Line(ORIGINAL, "", tuple(column.of_original(original) for column in columns))
    return Table(tuple(column.heading for column in columns), (first, *lines))


@dataclass(frozen=True)
class Context:
    """What cells depend on beyond their variant: decimals of the two columns of percentages whose numbers span orders
    of magnitude, and the original's `right_images`."""

    denoiser: int
    layer: int
    right_images: tuple[bool, ...]


@dataclass(frozen=True)
class Column:
    """A heading, and the cells below it: a variant's and the original's."""

    heading: Heading
    of_variant: Callable[[Variant, Context], Cell]
    of_original: Callable[[Original], Cell] = lambda _: Cell(NONE)


def _share(shares: Mapping[str, Share]) -> Cell:
    share = overall(shares)
    return Cell(whole_percent(share.share), interval(share)) if share else Cell(NONE)


def _captions_gained(variant: Variant, context: Context) -> Cell:
    found = variant.captions_against(context.right_images)
    return Cell(f"{100 * found.value:+.0f}", signed_span(found, 100)) if found else Cell(NONE)


def _layer_errors(variant: Variant, context: Context) -> Cell:
    if not variant.layer_errors:
        return Cell(NONE)
    return Cell(
        percent(variant.layer_error_mean, context.layer), f"({percent(variant.layer_error_max, context.layer)})"
    )


def _error(variant: Variant, context: Context) -> Cell:
    return Cell(percent(variant.denoiser_error, context.denoiser), f"{fixed(variant.signal_to_error, 1)}{SPACE}dB")


def _strayed(variant: Variant, context: Context) -> Cell:
    found = variant.trajectory_error
    if found is None:
        return Cell(NONE)
    return Cell(percent(found.value, 2), f"{fixed(signal_to_error_db(found.value), 1)}{SPACE}dB")


def _psnr_median(variant: Variant, context: Context) -> Cell:
    found = variant.psnr_median
    if found is None:
        return Cell(fixed(variant.image_metrics.get("psnr_median"), 1))
    return Cell(fixed(found.value, 1), span(found, 1))


def _original_bits(original: Original) -> Cell:
    return Cell(fixed(8 * original.denoiser_bytes / original.denoiser_weights, 2))


CAPTIONS = Column(
    Heading("caption accuracy", "95 % interval"),
    lambda variant, _: _share(variant.caption_accuracy),
    lambda original: _share(original.caption_accuracy),
)
CAPTIONS_GAINED = Column(Heading("caption accuracy over the original's", "points, 95 % interval"), _captions_gained)
COLUMNS = (
    Column(Heading("bits", "quantized"), lambda variant, _: Cell(fixed(variant.bits_per_weight, 2))),
    Column(
        Heading("size", "MB"),
        lambda variant, _: Cell(megabytes(variant.denoiser_bytes)),
        lambda original: Cell(megabytes(original.denoiser_bytes)),
    ),
    Column(Heading("denoiser error", "relative, signal to error"), _error),
    Column(Heading("latents' error", "own trajectory, signal to error"), _strayed),
    Column(Heading("PSNR median", "dB, 95 % interval"), _psnr_median),
    CAPTIONS,
    CAPTIONS_GAINED,
    Column(Heading("layer error", "mean (worst)"), _layer_errors),
    Column(Heading("bits", "whole denoiser"), lambda variant, _: Cell(fixed(variant.denoiser_bits, 2)), _original_bits),
    Column(
        Heading("pipeline", "all files, MB"),
        lambda variant, _: Cell(megabytes(variant.folder_bytes) if variant.folder_bytes else NONE),
        lambda original: Cell(megabytes(original.folder_bytes) if original.folder_bytes else NONE),
    ),
    Column(
        Heading("memory", "weights, MB"),
        lambda variant, _: Cell(megabytes(variant.memory_bytes) if variant.memory_bytes else NONE),
        lambda original: Cell(megabytes(original.memory_bytes) if original.memory_bytes else NONE),
    ),
    Column(
        Heading("time", "× original"), lambda variant, _: Cell(fixed(variant.time_ratio, 2)), lambda _: Cell("1.00")
    ),
)
