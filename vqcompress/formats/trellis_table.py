"""The value table of the trellis code: a formula, so that nothing of it has to be stored.

State ``s`` of ``2**L`` means the value ``gain * z * exp(h * z**2 / 2)``, scaled to unit RMS before the gain, with
``z = Φ⁻¹((s * multiplier mod 2**L + 1/2) / 2**L)``: a Gaussian (Tukey's g-and-h family with g = 0; h > 0 makes the
tails heavier) whose quantiles are assigned to the states by a multiplicative permutation. Multipliers near an
odd multiple of ``2**(L-k)`` put the ``2**k`` successors of a state at evenly spaced quantiles, shifted a little from
state to state, which is what a good random code does on average and beats one (Gaussian source, L = 12, k = 3:
mean squared error .0179 against .0200 for a random permutation). They were found by search, see
``benchmarks/trellis_tables.py``; the gain is below one for one bit, where a reproduction must shrink, and above it
elsewhere, where the tails of a finite table are too short.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# (state bits, rate): (multiplier, gain, mean squared error on a unit Gaussian source)
GAUSSIAN_CODES: dict[tuple[int, int], tuple[int, float, float]] = {
    (8, 0): (141, 0.65, 1.0),
    (8, 1): (135, 0.912, 0.2905),
    (8, 2): (69, 1.07, 0.07602),
    (8, 3): (221, 1.11, 0.01989),
    (8, 4): (81, 1.13, 0.005389),
    (10, 0): (547, 0.65, 1.0),
    (10, 1): (487, 0.912, 0.2848),
    (10, 2): (755, 1.07, 0.07272),
    (10, 3): (135, 1.11, 0.01875),
    (10, 4): (723, 1.12, 0.004817),
    (10, 5): (353, 1.12, 0.001287),
    (12, 0): (2175, 0.7, 1.0),
    (12, 1): (1939, 0.912, 0.2808),
    (12, 2): (3049, 1.06, 0.07043),
    (12, 3): (2567, 1.09, 0.01787),
    (12, 4): (3831, 1.12, 0.004583),
    (12, 5): (3965, 1.11, 0.001158),
    (12, 6): (1217, 1.1, 0.0003068),
    (14, 0): (9803, 0.7, 1.0),
    (14, 1): (8637, 0.912, 0.2773),
    (14, 2): (12127, 1.04, 0.06929),
    (14, 3): (14231, 1.06, 0.01744),
    (14, 4): (13303, 1.08, 0.004384),
    (14, 5): (13831, 1.09, 0.001115),
    (14, 6): (15105, 1.09, 0.0002849),
    (14, 7): (15733, 1.09, 7.28e-05),
    (16, 0): (34319, 0.7, 1.0),
    (16, 1): (34917, 0.912, 0.2758),
    (16, 2): (16825, 1.06, 0.06862),
    (16, 3): (8261, 1.06, 0.01717),
    (16, 4): (53223, 1.06, 0.004296),
    (16, 5): (10641, 1.07, 0.00109),
    (16, 6): (42493, 1.07, 0.000276),
    (16, 7): (10323, 1.09, 6.96e-05),
    (16, 8): (32001, 1.07, 1.76e-05),
}

# (state bits, rate): mean squared error of columns whose weights add two numbers of bits in turn
HALF_RATE_ERRORS: dict[tuple[int, float], float] = {
    (8, 0.5): 0.5552,
    (8, 1.5): 0.1503,
    (8, 2.5): 0.03995,
    (8, 3.5): 0.01086,
    (10, 0.5): 0.548,
    (10, 1.5): 0.1435,
    (10, 2.5): 0.0367,
    (10, 3.5): 0.009508,
    (10, 4.5): 0.002581,
    (12, 0.5): 0.5416,
    (12, 1.5): 0.1402,
    (12, 2.5): 0.03533,
    (12, 3.5): 0.009092,
    (12, 4.5): 0.002315,
    (12, 5.5): 0.0006099,
    (14, 0.5): 0.5366,
    (14, 1.5): 0.1367,
    (14, 2.5): 0.03443,
    (14, 3.5): 0.008804,
    (14, 4.5): 0.002215,
    (14, 5.5): 0.000569,
    (14, 6.5): 0.0001476,
    (16, 0.5): 0.5344,
    (16, 1.5): 0.1351,
    (16, 2.5): 0.03377,
    (16, 3.5): 0.008506,
    (16, 4.5): 0.002158,
    (16, 5.5): 0.0005533,
    (16, 6.5): 0.00014,
    (16, 7.5): 3.631e-05,
}

STATE_BITS = (8, 10, 12, 14, 16)


@lru_cache(maxsize=16)
def max_rate(state_bits: int) -> int:
    """The largest number of new bits a weight for which a code of this state size is defined."""
    return max(rate for bits, rate in GAUSSIAN_CODES if bits == state_bits)


def gaussian_error(state_bits: int, rate: float) -> float:
    """Mean squared error of the code at ``rate`` bits a weight, a multiple of 1/2, on a unit Gaussian source.

    A column of rate 0 is zero, error 1.
    """
    return HALF_RATE_ERRORS[state_bits, rate] if rate % 1 else GAUSSIAN_CODES[state_bits, int(rate)][2]


@lru_cache(maxsize=256)
def value_table(state_bits: int, rate: int, tail: float) -> Tensor:
    """Values of all states, float16 ``[2**state_bits]``; ``tail`` is Tukey's h. Treat the result as read-only."""
    multiplier, gain, _ = GAUSSIAN_CODES[state_bits, rate]
    return stretched_values(state_bits, multiplier, gain, tail)


def stretched_values(state_bits: int, multiplier: int, gain: float, tail: float) -> Tensor:
    """The formula at the top of this file, float16 ``[2**state_bits]``."""
    states = torch.arange(1 << state_bits, dtype=torch.int64)
    permuted = (states * multiplier) % (1 << state_bits)
    z = torch.special.ndtri((permuted.double() + 0.5) / (1 << state_bits))
    values = z * torch.exp(tail * z.square() / 2)
    return (gain * values / values.square().mean().sqrt()).half()
