import re
from dataclasses import replace

from vqcompress.reports import to_markdown
from vqcompress.reports.markdown import escape


def test_each_table_has_one_line_a_variant_and_equal_columns(comparison):
    variants, fidelity, *_ = to_markdown(comparison).split("\n## ")
    for text, originals in ((variants, 1), (fidelity, 0)):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + originals + len(comparison.variants)
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert lines[1].startswith("| :--- | ---: |")


def test_table_says_the_numbers(comparison):
    text = to_markdown(comparison)
    line = next(line for line in text.splitlines() if line.startswith("| trellis 3-bit"))
    assert [part.strip() for part in line.split("|")][2:5] == [
        "3.04", "6.07", "0.66\N{NO-BREAK SPACE}% 21.8\N{NO-BREAK SPACE}dB",
    ]  # fmt: skip


def test_verdicts_and_conditions_are_there(comparison):
    text = to_markdown(comparison)
    assert text.count("- better: **") == 6
    assert "![" in text
    assert "seed 0 + i" in text


def test_markup_in_text_is_escaped():
    assert escape("a | b\n*c* <d> [e] `f` g_h") == "a \\| b \\*c\\* \\<d> \\[e] \\`f\\` g\\_h"


def test_layers_left_dense_or_undersampled_are_named(comparison):
    variant = replace(
        comparison.variants[0],
        dense_layers=("conv_a",),
        undersampled_layers=tuple(f"experts.{i}.fc1" for i in range(6)),
    )
    text = to_markdown(replace(comparison, variants=(variant, *comparison.variants[1:])))
    assert "1 layer stayed dense (conv\\_a); their bytes" in text
    listed = "experts.0.fc1, experts.1.fc1, experts.2.fc1, experts.3.fc1 and 2 more"
    assert f"6 layers saw fewer samples in calibration than they have columns ({listed})" in text
    assert "## Layers" not in to_markdown(comparison)
