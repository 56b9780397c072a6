"""The numbers behind each figure of the page, as CSV that a link in it downloads."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Iterator

from vqcompress.metrics import Estimate
from vqcompress.reports.comparison import ORIGINAL, Comparison
from vqcompress.reports.plots import block_of
from vqcompress.reports.variant import Variant

Row = tuple[object, ...]


def figure_data(comparison: Comparison) -> dict[str, str]:
    """Figure -> its CSV text, a line for each mark, unrounded."""
    return {
        "quality-by-size": _text(_sizes(comparison)),
        "error-by-timestep": _text(_timesteps(comparison)),
        "layers": _text(_layers(comparison)),
        "caption-accuracy": _text(_captions(comparison)),
        "images": _text(_images(comparison)),
    }


def data_url(content: bytes, kind: str) -> str:
    """The address of an image or a link's target that holds ``content``, of MIME type ``kind``."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _text(rows: Iterator[Row]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _interval(estimate: Estimate | None) -> Row:
    return (estimate.value, estimate.low, estimate.high, estimate.count) if estimate else ("", "", "", "")


def _sizes(comparison: Comparison) -> Iterator[Row]:
    error = ("error", "error_low", "error_high", "error_images")
    psnr = ("psnr_median", "psnr_low", "psnr_high", "psnr_images")
    yield ("variant", "method", "made_by", "denoiser_bytes", "bits_per_weight", *error, *psnr)
    for each in comparison.variants:
        made = each.peer or "vqcompress"
        size = each.denoiser_bytes, each.bits_per_weight
        yield (each.label, each.curve, made, *size, *_interval(each.error), *_interval(each.psnr_median))


def _timesteps(comparison: Comparison) -> Iterator[Row]:
    yield ("variant", "timestep", "denoiser_error", "latents_error_on_own_trajectory")
    for each in comparison.variants:
        strayed = each.trajectory.by_timestep
        for time, error in each.error_by_timestep.items():
            yield (each.label, time, error, strayed.get(time, ""))


def _layers(comparison: Comparison) -> Iterator[Row]:
    yield ("variant", "block", "layer", "error", "bits", "gap_bits", "outliers", "scalar_code", "kept_dense")
    for variant in comparison.variants:
        yield from _layers_of(variant)


def _layers_of(variant: Variant) -> Iterator[Row]:
    for each in variant.layer_errors:
        gap = "" if each.gap is None else each.gap
        block = block_of(each.layer)
        yield (variant.label, block, each.layer, each.error, each.bits, gap, each.outliers, int(each.is_scalar), 0)
    for name in variant.dense_layers:
        yield (variant.label, block_of(name), name, 0, 16, "", 0, 0, 1)


def _captions(comparison: Comparison) -> Iterator[Row]:
    yield ("variant", "question", "share", "low", "high", "images")
    known = [(ORIGINAL, comparison.original.caption_accuracy)]
    for label, shares in known + [(each.label, each.caption_accuracy) for each in comparison.variants]:
        for question, share in shares.items():
            yield (label, question, share.share, share.low, share.high, share.count)


def _images(comparison: Comparison) -> Iterator[Row]:
    yield ("variant", "image", "metric", "value", "prompt")
    for variant in comparison.variants:
        for metric, values in variant.image_values.items():
            for index, value in enumerate(values):
                yield (variant.label, index + 1, metric, value, comparison.settings.prompts[index])
    judged = [(ORIGINAL, comparison.original.right_images)]
    for label, right in judged + [(each.label, each.right_images) for each in comparison.variants]:
        for index, shown in enumerate(right):
            yield (label, index + 1, "right", int(shown), comparison.settings.prompts[index])
