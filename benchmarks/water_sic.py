"""WaterSIC: uniform integers with a step for each column, entropy-coded, under successive feedback.

After arXiv 2603.04956: with steps in proportion to ``U_jj``, the diagonal of the
feedback's factor, all columns cost the same, which is reverse water-filling; the entropy coder gives each the rate that
its step asks for. No integers are packed here: bits are the empirical entropy of each column's integers, a lower
estimate of what a coder needs, and 16 bits a column for its step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import Feedback, prepare_feedback, usual_damping

STEP_BITS = 16
ROUNDS = 12  # of bisection


def water_sic(weight: Tensor, moment: Tensor | SecondMoment | None, bits: float) -> tuple[Tensor, float]:
    """Decoded ``weight [out, columns]`` and its bits a weight, at most ``bits``; ``moment``, the identity if None."""
    found = SecondMoment.of(torch.eye(weight.shape[1]) if moment is None else moment)
    feedback = prepare_feedback(found, usual_damping(found, bits))
    low, high = -bits - 4, 4.0  # log2 of the step of a column that is a source by itself, in standard deviations
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if _coded(weight, feedback, middle)[1] <= bits else (middle, high)
    return _coded(weight, feedback, high)


def _coded(weight: Tensor, feedback: Feedback, log_step: float) -> tuple[Tensor, float]:
    steps = (2**log_step * weight.std() * (feedback.sensitivity.mean() / feedback.sensitivity).sqrt()).float()
    spent = [float(STEP_BITS)]

    def encode(column: int, target: Tensor) -> Tensor:
        integers = (target / steps[column]).round()
        spent.append(len(integers) * entropy(integers) + STEP_BITS)
        values = integers * steps[column]
        power = values.square().sum()
        return values * ((values * target).sum() / power) if power > 0 else values

    decoded = feedback.sweep(weight.t().contiguous(), encode)
    return decoded.t(), sum(spent) / weight.numel()


def entropy(integers: Tensor) -> float:
    """Empirical entropy of ``integers [n]`` in bits."""
    _, counts = integers.unique(return_counts=True)
    shares = counts.double() / len(integers)
    return float(-(shares * shares.log2()).sum())
