import math

import pytest

from vqcompress.reports.formatting import fixed, percent, percent_decimals, percent_short, significant, size

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(512, "512 B"), (5_610_000, "5.61 MB"), (28_840_000, "28.8 MB"), (5_135_000_000, "5.13 GB"), (1_500, "1.50 kB")],
)
def test_sizes_have_three_digits(nbytes, text):
    assert size(nbytes) == text.replace(" ", NBSP)


@pytest.mark.parametrize(("value", "text"), [(0.0123, "0.012"), (4.742, "4.7"), (123.4, "123"), (0.0, "0")])
def test_significant_digits_without_exponent(value, text):
    assert significant(value, 2) == text


def test_what_is_not_finite_has_words():
    assert (fixed(math.inf, 1), fixed(math.nan, 1), fixed(None, 1)) == ("∞", "–", "–")
    assert percent(math.nan, 1) == "–"
    assert percent_short(math.nan) == f"–{NBSP}%"


def test_columns_of_percentages_keep_two_digits_of_the_smallest():
    assert percent_decimals([0.1, 0.0021]) == 2
    assert percent_decimals([0.5]) == 1
    assert percent_decimals([math.nan, 0.0]) == 1


def test_a_small_percentage_is_never_written_as_none_at_all():
    assert percent(1.1e-7, 4) == f"0.000011{NBSP}%"
    assert percent(0.0, 4) == f"0.0000{NBSP}%"
    assert percent(1e-6, 4) == f"0.00010{NBSP}%"
    assert percent(1e-5, 4) == f"0.0010{NBSP}%"
