import pytest

from vqcompress.errors import VQCompressError
from vqcompress.metrics import caption_accuracy, overall, wilson_interval


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_interval_agrees_with_published_values(passed, total, low, high):
    # 81 of 263 is the worked example of Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    assert wilson_interval(passed, total) == pytest.approx((low, high), abs=1e-4)


def test_more_images_narrow_the_interval():
    few, many = wilson_interval(8, 10), wilson_interval(800, 1000)
    assert many[1] - many[0] < (few[1] - few[0]) / 5


@pytest.mark.parametrize(("passed", "total"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_are_refused(passed, total):
    with pytest.raises(VQCompressError, match="no share of"):
        wilson_interval(passed, total)


def test_shares_count_only_images_that_were_asked():
    shares = caption_accuracy(
        [{"all": True, "count": True}, {"all": False}, {"all": True, "count": False}, {"all": True}]
    )
    assert list(shares) == ["all", "count"]
    assert (shares["all"]["share"], shares["all"]["count"]) == (0.75, 4)
    assert (shares["count"]["share"], shares["count"]["count"]) == (0.5, 2)
    assert shares["all"]["low"] < 0.75 < shares["all"]["high"]


def test_the_question_that_counts_is_all_else_the_first():
    assert overall({"count": True, "all": False}) is False
    assert overall({"count": True, "shape": False}) is True
    assert overall({}) is None
