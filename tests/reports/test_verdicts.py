from dataclasses import replace

import pytest

from vqcompress.reports import verdicts
from vqcompress.reports.verdicts import verdict_lines

MB = 1_000_000
SPACE = "\N{NO-BREAK SPACE}"


@pytest.fixture
def variant(comparison):
    def make(label: str, nbytes: float, error: float, psnr: float = 30.0, spread: float = 0.2):
        """``spread``: by how much the images' values differ from what all variants have in common."""
        method, *_, scheme = label.split()
        scheme = scheme if scheme in ("mixed", "uniform") else "uniform" if method in ("trellis", "additive") else ""
        signs = [-1.0, 1.0, 0.0, 1.0, -1.0] if method == "trellis" else [0.0] * 5
        hard = [3.0, -2.0, 0.0, 1.0, -1.0]
        values = tuple(psnr + h + spread * s for h, s in zip(hard, signs, strict=True))
        energies = tuple((error * 10 * (1 + spread * s), 10.0) for s in signs)
        first = comparison.variants[0]
        return replace(
            first,
            label=label,
            method=method,
            scheme=scheme,
            denoiser_bytes=int(nbytes * MB),
            denoiser_error=error,
            image_metrics={**first.image_metrics, "psnr": psnr, "psnr_median": psnr},
            image_values={"psnr": values},
            energies=energies,
        )

    return make


@pytest.fixture
def scalars(variant):
    return [
        variant("gptq 2-bit", 4, 0.08, 20.0),
        variant("gptq 4-bit", 8, 0.005, 32.0),
        variant("rtn 2-bit", 4, 0.32, 14.0),
        variant("rtn 4-bit", 7.9, 0.02, 26.0),
    ]


def test_neighbours_are_the_nearest_that_no_other_beats(variant, scalars):
    error, psnr = verdicts([variant("trellis 3-bit", 6, 0.01, 28.0), *scalars])
    assert (error.larger.label, error.smaller.label) == ("rtn 4-bit", "gptq 2-bit")
    assert (error.outcome, psnr.outcome) == ("better", "better")
    assert error.larger.difference.value == pytest.approx(0.5)
    assert psnr.larger.difference.value == pytest.approx(2.0)
    assert error.larger.difference.count == 5
    beaten = [variant("gptq 3-bit", 7, 0.015, 27.0), *scalars]
    assert verdicts([variant("trellis 3-bit", 6, 0.01), *beaten])[0].larger.label == "gptq 3-bit"


def test_nothing_is_interpolated(variant, scalars):
    """Between a smaller, worse and a larger, better one nothing is said, but both are shown."""
    found = verdicts([variant("trellis 3-bit", 6, 0.03, 22.0), *scalars[:2]])
    assert [each.outcome for each in found] == ["open", "open"]
    (line,) = verdict_lines(found)
    assert line.outcome == "open"
    assert f"for gptq 4-bit, 33{SPACE}% larger" in line.text
    assert f"for gptq 2-bit, 33{SPACE}% smaller" in line.text


def test_a_difference_within_the_interval_is_none(variant, scalars):
    found = verdicts([variant("trellis 3-bit", 6, 0.0202, 26.05, spread=0.4), *scalars])
    assert [each.outcome for each in found] == ["level", "level"]
    (line,) = verdict_lines(found)
    assert line.outcome == "level"
    assert line.text.count("does not differ") == 2
    assert "5 images" in line.text


def test_losses_to_a_smaller_one_are_said(variant, scalars):
    found = verdicts([variant("kmeans 3-bit", 6, 0.1, 19.0), *scalars])
    assert [each.outcome for each in found] == ["worse", "worse"]
    (line,) = verdict_lines(found)
    assert line.outcome == "worse"
    assert f"denoiser error 10{SPACE}% against 8.0{SPACE}% for gptq 2-bit, 33{SPACE}% smaller" in line.text
    assert "differs: 1.2 times the error, interval 1.2 to 1.2" in line.text
    assert f"differs: -1.0{SPACE}dB, interval -1.0 to -1.0" in line.text


def test_equal_bytes_decide_both_ways(variant):
    same = variant("gptq 3-bit", 6.01, 0.02, 26.0)
    assert verdicts([variant("trellis 3-bit", 6, 0.01, 28.0), same])[0].outcome == "better"
    assert verdicts([variant("trellis 3-bit", 6, 0.04, 24.0), same])[0].outcome == "worse"
    (line,) = verdict_lines(verdicts([variant("trellis 3-bit", 6, 0.01, 28.0), same]))
    assert "for gptq 3-bit, of the same size" in line.text


def test_less_error_without_better_images_is_called_that(variant, scalars):
    """And it is said before what is better by both."""
    plain = variant("additive 3-bit", 6, 0.01, 28.0)
    level = variant("trellis 3-bit", 6.5, 0.01, 26.05, spread=0.4)
    first, last = verdict_lines(verdicts([plain, level, *scalars]))
    assert (first.subject, first.outcome, first.style) == ("trellis 3-bit", "better in error only", "level")
    assert (last.subject, last.outcome, last.style) == ("additive 3-bit", "better", "better")
    (line,) = verdict_lines(verdicts([variant("trellis 3-bit", 6, 0.0202, 28.0, spread=0.4), *scalars]))
    assert line.outcome == "better in images only"


def test_less_error_with_worse_images_than_the_next_larger_is_not_called_better(variant, scalars):
    (line,) = verdict_lines(verdicts([variant("additive 3-bit", 6, 0.01, 23.0), *scalars]))
    assert line.outcome == "better in error only"
    (line,) = verdict_lines(verdicts([variant("additive 3-bit", 6, 0.04, 28.0), *scalars]))
    assert line.outcome == "better in images only"


def test_measures_that_disagree_are_mixed(variant, scalars):
    (line,) = verdict_lines(verdicts([variant("additive 3-bit", 6, 0.01, 19.0), *scalars]))
    assert line.outcome == "mixed"


def test_allocated_bits_meet_allocated_bits(variant, scalars):
    mixed = variant("gptq 3-bit mixed", 7, 0.002, 40.0)
    allocated = replace(variant("trellis 3-bit", 6, 0.001, 44.0), scheme="")
    assert verdicts([allocated, *scalars, mixed])[0].larger.label == "gptq 3-bit mixed"
    assert verdicts([variant("trellis 3-bit uniform", 6, 0.01), *scalars, mixed])[0].larger.label == "rtn 4-bit"
    (line,) = verdict_lines(verdicts([allocated, *scalars]))
    assert (line.outcome, "allocated in the same way" in line.text) == ("open", True)


def test_other_packages_are_rivals_with_the_same_bits_everywhere(variant):
    peer = replace(variant("gptq 3-bit", 6.5, 0.02, 26.0), label="gguf-q3_k", method="gguf-q3_k", peer="ggml 1.0")
    assert verdicts([variant("trellis 3-bit", 6, 0.01, 28.0), peer])[0].larger.label == "gguf-q3_k"
    assert verdicts([peer]) == ()


def test_without_images_in_common_nothing_is_said_to_differ(variant, scalars):
    bare = replace(variant("trellis 3-bit", 6, 0.01, 28.0), image_values={}, energies=())
    found = verdicts([bare, *scalars])
    assert {each.outcome for each in found} == {"open"}
    assert "differ" not in verdict_lines(found)[0].text


def test_without_rivals_all_is_open(variant):
    found = verdicts([variant("trellis 3-bit", 6, 0.01), variant("additive 3-bit", 6, 0.02)])
    (line,) = verdict_lines(found)
    assert "trellis 3-bit" in line.subject
    assert "additive 3-bit" in line.subject


def test_scalar_variants_get_no_verdict(scalars):
    assert verdicts(scalars) == ()


def test_a_broken_variant_does_not_win(variant, scalars):
    nan = float("nan")
    broken = replace(
        variant("trellis 3-bit", 6, nan, nan), image_values={"psnr": (nan,) * 5}, energies=((nan, 10.0),) * 5
    )
    assert {each.outcome for each in verdicts([broken, *scalars])} == {"open"}
