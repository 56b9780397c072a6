import math

import pytest

from vqcompress.metrics import bytes_at_error, error_at_bytes

CURVE = [(400, 0.01), (200, 0.16), (300, 0.04)]


def test_measured_points_come_back_exactly():
    assert [error_at_bytes(CURVE, nbytes) for nbytes in (200, 300, 400)] == pytest.approx([0.16, 0.04, 0.01])


def test_between_points_the_logarithm_is_linear():
    assert error_at_bytes(CURVE, 250) == pytest.approx(0.08)
    assert error_at_bytes(CURVE, 375) == pytest.approx(0.04 * 0.25**0.75)


def test_nothing_is_extrapolated():
    assert error_at_bytes(CURVE, 199) is None
    assert error_at_bytes(CURVE, 401) is None
    assert error_at_bytes([], 300) is None
    assert bytes_at_error(CURVE, 0.2) is None
    assert bytes_at_error(CURVE, 0.009) is None


def test_bytes_at_error_is_the_inverse():
    assert bytes_at_error(CURVE, 0.08) == pytest.approx(250)
    assert bytes_at_error(CURVE, 0.01) == pytest.approx(400)


def test_one_point_answers_only_for_itself():
    assert error_at_bytes([(300, 0.04)], 300) == pytest.approx(0.04)
    assert error_at_bytes([(300, 0.04)], 301) is None


def test_points_without_a_logarithm_are_left_out():
    broken = [*CURVE, (350, 0.0), (360, math.nan), (370, math.inf)]
    assert error_at_bytes(broken, 350) == pytest.approx(0.02)
    assert bytes_at_error(CURVE, 0.0) is None
    assert bytes_at_error(CURVE, math.inf) is None


def test_of_equal_bytes_the_better_counts():
    assert error_at_bytes([*CURVE, (300, 0.5)], 300) == pytest.approx(0.04)


def test_a_point_that_costs_more_and_gives_less_does_not_bend_the_inverse():
    assert bytes_at_error([*CURVE, (350, 0.3)], 0.02) == pytest.approx(350)
