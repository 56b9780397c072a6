"""Steps of a trellis: what a weight adds to the state, and what the one after it shifts out.

A state is ``(branch, stem, symbol)`` from high bits to low. The symbol is what the weight added, the branch what the
next weight will shift out. At half-integer rates weights add ``k`` and ``k + 1`` bits in turn, so the sizes of both
alternate; where an odd number of weights closes the circle, two weights with ``k`` bits follow each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LANES = 16  # floats per vector instruction, or two of eight


@dataclass(frozen=True)
class Step:
    """A weight that adds ``own`` bits before one that adds ``following``, in a trellis of ``state_bits``."""

    state_bits: int
    own: int
    following: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Branches, stems, symbols."""
        return 1 << self.following, 1 << (self.state_bits - self.own - self.following), 1 << self.own

    @property
    def together(self) -> int:
        """Symbols that are taken together, so that they and the stems fill vectors."""
        _, stems, symbols = self.sizes
        return min(symbols, max(1, LANES // stems))

    def arranged(self, table: np.ndarray) -> np.ndarray:
        """Values ``[2**state_bits]`` in the order in which the step reads them."""
        by_symbol = table.reshape(self.sizes).transpose(2, 0, 1)
        blocks = by_symbol.reshape(-1, self.together, *by_symbol.shape[1:])
        return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).ravel()


def steps(state_bits: int, rate: float) -> tuple[Step, ...]:
    """The kinds of steps of a rate. Three at a half-integer one: from a weight with fewer bits, from one with more, and
    across the seam."""
    low = int(rate)
    if rate % 1 == 0:
        return (Step(state_bits, low, low),)
    return Step(state_bits, low, low + 1), Step(state_bits, low + 1, low), Step(state_bits, low, low)


def kinds(places: np.ndarray, outputs: int, rate: float) -> np.ndarray:
    """Which of `steps` the weight at each of ``places [n]`` in the column is, uint8 ``[n]``."""
    if rate % 1 == 0:
        return np.zeros(len(places), np.uint8)
    found = (places % 2).astype(np.uint8)
    found[(places == outputs - 1) & (found == 0)] = 2
    return found


def arranged_tables(state_bits: int, rate: float, tables: Mapping[int, np.ndarray]) -> list[np.ndarray]:
    """Tables (by new bits) for each of `steps`, flat."""
    return [step.arranged(tables[step.own]) for step in steps(state_bits, rate)]
