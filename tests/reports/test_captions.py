"""Caption accuracy against the original's and against a neighbour's: paired, wherever a report says it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from vqcompress.metrics import mean, paired_difference
from vqcompress.reports import Comparison, to_markdown, verdicts
from vqcompress.reports.figure_data import figure_data
from vqcompress.reports.formatting import SPACE, points
from vqcompress.reports.table import variants_table
from vqcompress.reports.verdicts import verdict_lines
from vqcompress.reports.wording import summary

COLUMN = "caption accuracy over the original's"


def judged(comparison: Comparison, original: tuple[bool, ...], first: tuple[bool, ...]) -> Comparison:
    """The comparison with these answers of the original and of the first variant."""
    variants = (replace(comparison.variants[0], right_images=first), *comparison.variants[1:])
    return replace(comparison, variants=variants, original=replace(comparison.original, right_images=original))


def cells(comparison: Comparison) -> list[str]:
    """The column's cells, the original's first."""
    table = variants_table(comparison)
    place = [heading.name for heading in table.headings].index(COLUMN)
    return [f"{line.cells[place].text} {line.cells[place].remark}".strip() for line in table.lines]


def test_a_pair_counts_only_images_that_differ(comparison):
    """Ninety images that both draw wrong say nothing of which is better; ten that one alone draws right do."""
    rng = np.random.default_rng(0)
    original = np.concatenate([np.ones(10, bool), rng.random(90) < 0.5])
    variant = np.concatenate([np.zeros(10, bool), original[10:]])
    found = replace(comparison.variants[0], right_images=tuple(variant.tolist())).captions_against(
        tuple(original.tolist())
    )
    assert found.value == pytest.approx(-0.10)
    assert found.excludes(0.0)
    # Binomial: 10 of 100 differ, so a standard error of sqrt(.1 * .9 / 100) = .03.
    assert (found.low, found.high) == pytest.approx((-0.16, -0.05), abs=0.011)


def test_another_number_of_images_is_no_pair(comparison):
    first = replace(comparison.variants[0], right_images=(True, False))
    assert first.captions_against((True,)) is None
    assert first.captions_against(()) is None


def test_table_and_summary_say_whether_they_differ(comparison):
    wrong = judged(comparison, (True,) * 6, (False,) * 6)
    assert cells(wrong)[:2] == ["–", "-100 -100 to -100"]
    assert f"on the same images the two differ (-100{SPACE}points, -100 to -100)" in summary(wrong)
    same = judged(comparison, (True,) * 6, (True,) * 6)
    assert cells(same)[1] == "+0 +0 to +0"
    assert "do not differ" in summary(same)


def test_without_single_answers_the_column_is_not_there(comparison):
    old = judged(comparison, (), ())
    assert COLUMN not in to_markdown(old)
    assert "on the same images" not in summary(old)


def test_a_verdict_has_the_difference_from_its_neighbour(comparison):
    ours = replace(comparison.variants[0], right_images=(True, True, True, True, True, False))
    rival = next(variant for variant in comparison.variants if variant.label == "gptq 3-bit")
    rival = replace(rival, right_images=(False, False, True, True, True, False))
    found = verdicts([ours, rival])
    assert [verdict.larger.captions is None for verdict in found] == [True, False]
    expected = paired_difference(ours.right_images, rival.right_images, mean)
    assert found[1].larger.captions == expected
    assert verdict_lines(found)[0].text.endswith(f", caption accuracy {points(expected)}.")


def test_each_answer_is_in_the_page_data(comparison):
    rows = list(csv.DictReader(io.StringIO(figure_data(comparison)["images"])))
    right = [row for row in rows if row["metric"] == "right" and row["variant"] == "original"]
    assert [int(row["value"]) for row in right] == [int(each) for each in comparison.original.right_images]
    assert [row["prompt"] for row in right] == list(comparison.settings.prompts)
