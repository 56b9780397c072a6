"""Two runs agree if their verdicts do and medians lie in the published intervals."""

from __future__ import annotations

import json
from dataclasses import replace

from click.testing import CliRunner

import same_verdicts
from vqcompress.reports import verdicts


def shifted(comparison, label: str, by: float):
    """``label``'s images nearer to the original by so many dB, and the verdicts that follow."""

    def moved(variant):
        values = {**variant.image_values, "psnr": tuple(value + by for value in variant.image_values["psnr"])}
        return replace(variant, image_values=values) if variant.label == label else variant

    variants = tuple(map(moved, comparison.variants))
    return replace(comparison, variants=variants, verdicts=verdicts(variants))


def test_a_run_agrees_with_itself(comparison):
    found = same_verdicts.agreement(comparison, comparison)
    assert found.differences == ()
    assert found.medians == len(comparison.variants)
    assert found.verdicts == sum(variant.family == "vector" for variant in comparison.variants)


def test_a_median_outside_of_its_interval_and_a_verdict_that_turned_are_named(comparison):
    worse = shifted(comparison, "trellis 3-bit", -40.0)
    said = same_verdicts.agreement(comparison, worse).differences
    assert [each.split(",")[0] for each in said] == ["trellis 3-bit: better", said[1].split(",")[0]]
    assert said[0].startswith("trellis 3-bit: better, now ")
    assert said[1].startswith("trellis 3-bit: median ")
    assert same_verdicts.agreement(comparison, shifted(comparison, "trellis 3-bit", 0.1)).differences == ()


def test_a_variant_of_one_run_is_a_difference(comparison):
    fewer = replace(comparison, variants=comparison.variants[:-1])
    label = comparison.variants[-1].label
    assert same_verdicts.agreement(comparison, fewer).differences == (f"{label}: only in one of them",)


def test_the_command_exits_with_what_it_found(comparison, tmp_path, monkeypatch):
    for name, found in (("ours", comparison), ("theirs", shifted(comparison, "trellis 3-bit", -40.0))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shapes-peers.json").write_text(json.dumps({"report": found.to_json()}))
        (tmp_path / name / "layers.json").write_text(json.dumps({"table": "| a |"}))
    monkeypatch.setattr(same_verdicts, "RESULTS", tmp_path / "ours")
    same = CliRunner().invoke(same_verdicts.main, [str(tmp_path / "ours")])
    assert same.exit_code == 0
    assert "| shapes-peers |" in same.output
    assert "| none |" in same.output
    other = CliRunner().invoke(same_verdicts.main, [str(tmp_path / "theirs")])
    assert other.exit_code == 1
    assert "trellis 3-bit: better, now" in other.output
    (tmp_path / "empty").mkdir()
    assert "no report that docs/results has" in CliRunner().invoke(same_verdicts.main, [str(tmp_path / "empty")]).output
