"""The table of images' fidelity: median and mean with intervals, and the worst image, of every metric."""

import math
from dataclasses import replace

import pytest

from vqcompress.reports import Comparison, to_html, to_markdown
from vqcompress.reports.fidelity import fidelity_table

VALUES = {
    "psnr": (30.0, 20.0, 40.0),
    "ssim": (0.9, 0.99, 0.6),
    "feature_distance": (0.001, 0.004, 0.002),
}


@pytest.fixture
def single(comparison: Comparison) -> Comparison:
    return replace(comparison, variants=(replace(comparison.variants[0], image_values=VALUES),))


def cells(comparison: Comparison) -> dict[str, tuple[str, str]]:
    table = fidelity_table(comparison)
    (line,) = table.lines
    named = zip(table.headings, line.cells, strict=True)
    return {heading.name: (cell.text, cell.remark) for heading, cell in named}


def test_each_metric_has_median_mean_and_worst_image(single):
    found = cells(single)
    assert list(found) == [
        f"{metric} {what}"
        for metric in ("PSNR", "SSIM", "feature distance")
        for what in ("median", "mean", "worst")
    ]  # fmt: skip
    assert [found[f"PSNR {what}"][0] for what in ("median", "mean", "worst")] == ["30.0", "30.0", "20.0"]
    assert [found[f"SSIM {what}"][0] for what in ("median", "mean", "worst")] == ["0.9000", "0.8300", "0.6000"]
    assert [found[f"feature distance {what}"][0] for what in ("median", "mean", "worst")] == ["2.00", "2.33", "4.00"]


def test_the_worst_image_is_the_one_with_the_largest_distance_and_the_smallest_similarity(single):
    found = cells(single)
    worst = {metric: found[f"{metric} worst"][1] for metric in ("PSNR", "SSIM", "feature distance")}
    assert worst == {"PSNR": "#2", "SSIM": "#3", "feature distance": "#2"}


def test_intervals_are_those_of_resampled_images(single):
    found = cells(single)
    # One resampling of three images in 27 takes the same one three times, which is more than 2.5 %: the interval's ends
    # are single images.
    assert found["PSNR median"][1] == "20.0–40.0"
    assert found["feature distance mean"][1] == "1.00–4.00"


def test_identical_images_have_an_infinite_psnr(single):
    values = {**VALUES, "psnr": (math.inf,) * 3}
    same = replace(single, variants=(replace(single.variants[0], image_values=values),))
    assert [cells(same)[f"PSNR {what}"] for what in ("median", "worst")] == [("∞", "∞–∞"), ("∞", "#1")]


def test_a_report_without_single_images_has_dashes(single):
    bare = replace(single, variants=(replace(single.variants[0], image_values={}),))
    assert set(cells(bare).values()) == {("–", "")}


def test_both_documents_show_it(single):
    for text in (to_markdown(single), to_html(single)):
        assert "Fidelity of the images" in text
        assert "0.8300" in text


def test_the_trajectory_s_error_is_in_decibel_as_well(comparison):
    line = next(line for line in to_markdown(comparison).splitlines() if line.startswith("| trellis 4-bit"))
    assert "24.8\N{NO-BREAK SPACE}dB" in line  # -10 log10(2 · .42 / 4⁴ · 42.4 / 42)
