"""Relative errors of several copies of one weight."""

from __future__ import annotations

import math

import pytest
import torch

from vqcompress.quantizers.layer_error import relative_error, relative_errors


def test_copies_share_one_power() -> None:
    """W = (1, 2) under H = [[2, 1], [1, 3]]: WHWᵀ = 18; an error of (1, 0) costs 2, one of (1, -1) costs 3."""
    weight, moment = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    copies = [torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 3.0]]), weight]
    assert list(relative_errors(weight, copies, moment)) == [pytest.approx(2 / 18), pytest.approx(3 / 18), 0.0]
    assert relative_error(weight, copies[0], moment) == pytest.approx(2 / 18)


def test_a_layer_without_output_has_no_finite_error_but_0() -> None:
    nothing = torch.zeros(1, 2)
    assert list(relative_errors(nothing, [nothing, nothing + 1])) == [0.0, math.inf]
