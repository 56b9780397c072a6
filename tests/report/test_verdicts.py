from dataclasses import replace

import pytest

from vqcompress.report import verdicts
from vqcompress.report.verdicts import verdict_lines

MB = 1_000_000


@pytest.fixture
def variant(comparison):
    def make(label: str, nbytes: int, error: float, psnr: float = 30.0):
        method = label.split()[0]
        first = comparison.variants[0]
        measured = {"denoiser_error": error, "image_metrics": {**first.image_metrics, "psnr": psnr}}
        return replace(first, label=label, method=method, denoiser_bytes=nbytes, **measured)

    return make


@pytest.fixture
def scalars(variant):
    return [
        variant("gptq 2-bit", 4 * MB, 0.08, 20.0),
        variant("gptq 4-bit", 8 * MB, 0.005, 32.0),
        variant("rtn 2-bit", 4 * MB, 0.32, 14.0),
        variant("rtn 4-bit", 8 * MB, 0.02, 26.0),
    ]


def test_rival_is_the_best_curve_at_the_same_bytes(variant, scalars):
    error, psnr = verdicts([variant("trellis 3-bit", 6 * MB, 0.01, 28.0), *scalars])
    assert (error.basis, error.rival, error.wins) == ("curve", "gptq", True)
    assert error.rival_value == pytest.approx(0.02)
    assert error.rival_bytes == pytest.approx(7 * MB)
    assert (psnr.rival, psnr.wins) == ("gptq", True)
    assert psnr.rival_value == pytest.approx(26.0)


def test_mixed_and_uniform_widths_are_two_curves(variant, scalars):
    mixed = [
        replace(variant("gptq 3-bit mixed", nbytes * MB, e), scheme="mixed") for nbytes, e in [(5, 0.04), (7, 0.002)]
    ]
    error = verdicts([variant("trellis 3-bit", 6 * MB, 0.01), *scalars, *mixed])[0]
    assert error.rival == "gptq-mixed"
    assert error.rival_value == pytest.approx((0.04 * 0.002) ** 0.5)


def test_the_same_bits_everywhere_meet_the_same(variant, scalars):
    mixed = [
        replace(variant("gptq 3-bit mixed", nbytes * MB, e), scheme="mixed") for nbytes, e in [(5, 0.04), (7, 0.002)]
    ]
    uniform = replace(variant("trellis 3-bit uniform", 6 * MB, 0.01), scheme="uniform")
    assert verdicts([uniform, *scalars, *mixed])[0].rival == "gptq"
    assert verdicts([uniform, *mixed])[0].rival == "gptq-mixed"


def test_small_ratios_are_fractions(variant, scalars):
    (line,) = verdict_lines(verdicts([variant("trellis 3-bit", 6 * MB, 0.0001, 40.0), *scalars]))
    assert "1/200 of it" in line.text


def test_losses_are_said(variant, scalars):
    found = verdicts([variant("kmeans 3-bit", 6 * MB, 0.03, 25.0), *scalars])
    assert [verdict.wins for verdict in found] == [False, False]
    (line,) = verdict_lines(found)
    assert line.outcome == "worse"
    assert "3.0\N{NO-BREAK SPACE}% against 2.0\N{NO-BREAK SPACE}% for gptq (50\N{NO-BREAK SPACE}% higher)" in line.text
    assert "-1.0\N{NO-BREAK SPACE}dB" in line.text
    assert "less" in line.text


def test_large_ratios_are_not_percentages(variant, scalars):
    (line,) = verdict_lines(verdicts([variant("kmeans 3-bit", 6 * MB, 1.3, 5.0), *scalars]))
    assert "65 times as high" in line.text


def test_measures_that_disagree_are_mixed(variant, scalars):
    (line,) = verdict_lines(verdicts([variant("additive 3-bit", 6 * MB, 0.01, 25.0), *scalars]))
    assert line.outcome == "mixed"


@pytest.mark.parametrize(
    ("nbytes", "error", "wins", "rival"),
    [(3 * MB, 0.07, True, "gptq 2-bit"), (9 * MB, 0.006, False, "gptq 4-bit")],
)
def test_beyond_the_curves_only_dominance_counts(variant, scalars, nbytes, error, wins, rival):
    verdict = verdicts([variant("trellis x", nbytes, error), *scalars])[0]
    assert (verdict.basis, verdict.wins, verdict.rival) == ("dominance", wins, rival)


@pytest.mark.parametrize(("nbytes", "error"), [(3 * MB, 0.5), (9 * MB, 0.004)])
def test_smaller_and_worse_or_larger_and_better_says_nothing(variant, scalars, nbytes, error):
    psnr = 10.0 if error > 0.4 else 33.0
    found = verdicts([variant("trellis x", nbytes, error, psnr), *scalars])
    assert {verdict.wins for verdict in found} == {None}
    (line,) = verdict_lines(found)
    assert (line.outcome, line.subject.split(" (")[0]) == ("open", "trellis x")


def test_without_scalar_variants_all_is_open(variant):
    found = verdicts([variant("trellis 3-bit", 6 * MB, 0.01), variant("additive 3-bit", 6 * MB, 0.02)])
    (line,) = verdict_lines(found)
    assert "trellis 3-bit" in line.subject
    assert "additive 3-bit" in line.subject


def test_scalar_variants_get_no_verdict(scalars):
    assert verdicts(scalars) == ()


def test_a_broken_variant_does_not_win(variant, scalars):
    found = verdicts([variant("trellis 3-bit", 6 * MB, float("nan"), float("nan")), *scalars])
    assert [verdict.wins for verdict in found] == [False, False]
