"""The value table of the trellis code: a formula, so that nothing of it has to be stored.

State ``s`` of ``2**L`` means the value ``gain * z * exp(h * z**2 / 2)``, scaled to unit RMS before the gain, with
``z = Φ⁻¹((s * multiplier mod 2**L + 1/2) / 2**L)``: a Gaussian (Tukey's g-and-h family with g = 0; h > 0 makes the
tails heavier) whose quantiles are dealt to the states by a multiplicative permutation. Multipliers near an
odd multiple of ``2**(L-k)`` put the ``2**k`` successors of a state at evenly spaced quantiles, shifted a little from
state to state, which is what a good random code does on average and beats one (Gaussian source, L = 12, k = 3:
mean squared error .0177 against .0200 for a random permutation). They were found by search, see
``benchmarks/trellis_tables.py``; the gain is below one for one bit, where a reproduction must shrink, and above it
elsewhere, where the tails of a finite table are too short.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# (state bits, rate): (multiplier, gain, mean squared error on a unit Gaussian source)
GAUSSIAN_CODES: dict[tuple[int, int], tuple[int, float, float]] = {
    (8, 1): (135, 0.86, 0.287),
    (8, 2): (187, 1.01, 0.0757),
    (8, 3): (97, 1.05, 0.0198),
    (8, 4): (79, 1.07, 0.0056),
    (10, 1): (549, 0.86, 0.280),
    (10, 2): (263, 1.01, 0.0718),
    (10, 3): (135, 1.05, 0.0185),
    (10, 4): (957, 1.06, 0.0049),
    (10, 5): (353, 1.06, 0.00138),
    (12, 1): (2203, 0.86, 0.2766),
    (12, 2): (1059, 1.00, 0.0696),
    (12, 3): (3559, 1.05, 0.0177),
    (12, 4): (3323, 1.06, 0.00452),
    (12, 5): (2687, 1.05, 0.00117),
    (12, 6): (577, 1.04, 0.000316),
    (14, 1): (8991, 0.86, 0.2752),
    (14, 2): (4257, 1.00, 0.0687),
    (14, 3): (10209, 1.02, 0.0172),
    (14, 4): (9229, 1.02, 0.00436),
    (14, 5): (11623, 1.03, 0.00111),
    (14, 6): (8067, 1.03, 0.000283),
    (16, 1): (31265, 0.86, 0.2681),
    (16, 2): (15459, 1.00, 0.0670),
    (16, 3): (8299, 1.00, 0.0169),
    (16, 4): (53223, 1.02, 0.00419),
    (16, 5): (10641, 1.01, 0.00106),
    (16, 6): (42493, 1.03, 0.000269),
}

STATE_BITS = (8, 10, 12, 14, 16)


def max_rate(state_bits: int) -> int:
    """The largest number of new bits a weight for which a code of this state size is defined."""
    return max(rate for bits, rate in GAUSSIAN_CODES if bits == state_bits)


def gaussian_error(state_bits: int, rate: int) -> float:
    """Mean squared error of the code on a unit Gaussian source; a column of rate 0 is zero, error 1."""
    return GAUSSIAN_CODES[state_bits, rate][2] if rate else 1.0


@lru_cache(maxsize=256)
def value_table(state_bits: int, rate: int, tail: float) -> Tensor:
    """Values of all states, float16 ``[2**state_bits]``; ``tail`` is Tukey's h. Treat the result as read-only."""
    multiplier, gain, _ = GAUSSIAN_CODES[state_bits, rate]
    return stretched_values(state_bits, multiplier, gain, tail)


def stretched_values(state_bits: int, multiplier: int, gain: float, tail: float) -> Tensor:
    """The formula at the top of this file, float16 ``[2**state_bits]``."""
    states = torch.arange(1 << state_bits, dtype=torch.int64)
    dealt = (states * multiplier) % (1 << state_bits)
    z = torch.special.ndtri((dealt.double() + 0.5) / (1 << state_bits))
    values = z * torch.exp(tail * z.square() / 2)
    return (gain * values / values.square().mean().sqrt()).half()
