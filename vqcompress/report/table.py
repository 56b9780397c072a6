"""The table of all variants: which columns there are, and how each number is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vqcompress.report.comparison import ORIGINAL, Comparison, Original, Row, Share
from vqcompress.report.formatting import NONE, fixed, interval, megabytes, percent, percent_decimals, whole_percent
from vqcompress.report.wording import overall


@dataclass(frozen=True)
class Cell:
    """A number as text, and a smaller remark beside it."""

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
    """A column's name, and under it what the name leaves open."""

    name: str
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """Headings without the label's column, and a line for the original and for each row."""

    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]


def variants_table(comparison: Comparison) -> Table:
    """All numbers of the comparison that fit in a row, the decisive first; every column has one number of decimals."""
    columns = [column for column in COLUMNS if column is not RIGHT or overall(comparison.original.alignment)]
    decimals = Decimals(
        denoiser=percent_decimals(row.denoiser_error for row in comparison.rows),
        layer=percent_decimals(row.layer_error_mean for row in comparison.rows),
    )
    lines = [
        Line(row.label, row.curve, tuple(column.of_row(row, decimals) for column in columns)) for row in comparison.rows
    ]
    first = Line(ORIGINAL, "", tuple(column.of_original(comparison.original) for column in columns))
    return Table(tuple(column.heading for column in columns), (first, *lines))


@dataclass(frozen=True)
class Decimals:
    """Decimals of the two columns of percentages that span orders of magnitude."""

    denoiser: int
    layer: int


@dataclass(frozen=True)
class Column:
    """A heading, and what stands under it for a variant and for the original."""

    heading: Heading
    of_row: Callable[[Row, Decimals], Cell]
    of_original: Callable[[Original], Cell] = lambda _: Cell(NONE)


def _share(alignment: Mapping[str, Share]) -> Cell:
    share = overall(alignment)
    return Cell(whole_percent(share.share), interval(share)) if share else Cell(NONE)


def _layer_errors(row: Row, decimals: Decimals) -> Cell:
    if not row.layer_errors:
        return Cell(NONE)
    return Cell(percent(row.layer_error_mean, decimals.layer), f"({percent(row.layer_error_max, decimals.layer)})")


def _original_bits(original: Original) -> Cell:
    return Cell(fixed(8 * original.denoiser_bytes / original.denoiser_weights, 2))


RIGHT = Column(
    Heading("right images", "95 % interval"),
    lambda row, _: _share(row.alignment),
    lambda original: _share(original.alignment),
)
COLUMNS = (
    Column(Heading("bits", "quantized"), lambda row, _: Cell(fixed(row.bits_per_weight, 2))),
    Column(
        Heading("size", "MB"),
        lambda row, _: Cell(megabytes(row.denoiser_bytes)),
        lambda original: Cell(megabytes(original.denoiser_bytes)),
    ),
    Column(Heading("error", "relative"), lambda row, d: Cell(percent(row.denoiser_error, d.denoiser))),
    Column(Heading("PSNR", "dB"), lambda row, _: Cell(fixed(row.psnr, 1))),
    Column(Heading("SSIM"), lambda row, _: Cell(fixed(row.ssim, 3))),
    RIGHT,
    Column(Heading("layer error", "mean (worst)"), _layer_errors),
    Column(Heading("all bits", "whole denoiser"), lambda row, _: Cell(fixed(row.denoiser_bits, 2)), _original_bits),
    Column(
        Heading("pipeline", "all files, MB"),
        lambda row, _: Cell(megabytes(row.folder_bytes)),
        lambda original: Cell(megabytes(original.folder_bytes) if original.folder_bytes else NONE),
    ),
    Column(Heading("time", "× original"), lambda row, _: Cell(fixed(row.time_ratio, 2)), lambda _: Cell("1.00")),
)
