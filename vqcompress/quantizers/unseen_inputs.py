"""Inputs that calibration has hardly seen: what they would cost if they came.

A channel behind a ReLU may be zero on all that was recorded and strong on other inputs. Its second moment says that the
weights which read it are worth nothing, and reverse water-filling leaves them no bits at all, where a scalar code keeps
them like all others. Without what is here HED, calibrated on one photograph and tested on another, has more error at 4
bits than at 3, all of it from one layer (`benchmarks/real_networks.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vqcompress.moments.rate_distortion import water_level
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.spectrum_sketch import SpectrumSketch

ALLOWED_RISE = 2.0  # half a bit a weight: scalar codes with error feedback leave ten times the error in such layers
LEAST_RATE = 1.0  # bits a weight below which a code keeps too little of unseen inputs to be worth that
STEPS = 32  # of the rate that unseen inputs may get


def hardly_seen(second_moment: SecondMoment) -> Tensor:
    """Which columns have less power than a single sample of usual power would give, bool ``[columns]``.

    None where nobody counted samples, where samples stand for the square (a ridge is in it then), and where all columns
    are alike in this.
    """
    power = second_moment.diagonal().double()
    if not second_moment.used or second_moment.samples is not None or not (power > 0).any():
        return torch.zeros(len(power), dtype=torch.bool, device=power.device)
    return power < power[power > 0].median() / second_moment.used


def with_unseen_inputs(second_moment: SecondMoment, bits: float) -> SecondMoment:
    """``second_moment`` in which columns that were `hardly_seen` have so much power that codes of ``bits`` bits a
    weight spend up to the mean rate on them.

    They get as much as raises the error of all others, at the rate-distortion bound, by no more than `ALLOWED_RISE`: a
    few such columns are coded like others, some coarsely, and where there are so many that each would get less than
    `LEAST_RATE`, they get nothing.
    """
    unseen = hardly_seen(second_moment)
    if not (share := float(unseen.double().mean())):
        return second_moment
    sketch = SpectrumSketch.of(second_moment)
    allowed, level, rate = ALLOWED_RISE * sketch.bound(bits), 0.0, 0.0
    for step in range(1, STEPS + 1):
        wanted = bits * step / STEPS
        if sketch.bound(bits - share * wanted) > allowed:
            break
        rate, level = wanted, water_level(sketch.eigenvalues, bits - share * wanted, sketch.shares)
    if rate < LEAST_RATE:
        return second_moment
    square = second_moment.dense().clone()
    square.diagonal()[unseen] = level * 4.0**rate
    return replace(second_moment, square=square)
