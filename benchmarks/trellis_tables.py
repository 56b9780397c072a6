"""Search the multipliers and scale factors of the trellis value table
(`vqcompress.formats.trellis_table.GAUSSIAN_CODES`).

``python benchmarks/trellis_tables.py`` prints the table, one line per code: multiplier, gain, and the mean squared
error of tail-biting columns of 1024 unit Gaussian weights. Candidates are odd multiples of ``2**(L-k)`` shifted a
little, and the multipliers in use; each stage keeps fewer of them and looks at them longer.
"""

from __future__ import annotations

import click
import numpy as np
import torch

from vqcompress.formats.trellis_table import GAUSSIAN_CODES, stretched_values
from vqcompress.search.viterbi import CpuViterbi, Search

ROWS = 1024
GAIN_STEPS = (0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06)


@click.command(help=__doc__)
@click.option("--states", default="8,10,12,14,16", show_default=True, help="State bits to search, comma-separated.")
@click.option(
    "--candidates", default=400, show_default=True, help="Multipliers tried per code (fewer for 14 and 16 bits)."
)
@click.option("--seed", default=0, show_default=True)
def main(states: str, candidates: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((128, ROWS)).astype(np.float32)
    for state_bits, rate in GAUSSIAN_CODES:
        if str(state_bits) in states.split(","):
            budget = max(24, candidates >> max(0, state_bits - 12))
            multiplier, gain = search(state_bits, rate, columns, budget, rng)
            error = tail_biting_error(state_bits, rate, multiplier, gain, columns[64:])
            print(f"    ({state_bits}, {rate}): ({multiplier}, {gain:.3g}, {error:.4g}),", flush=True)


def search(
    state_bits: int, rate: int, columns: np.ndarray, candidates: int, rng: np.random.Generator
) -> tuple[int, float]:
    """Multiplier and gain of the best code found; ``columns [n, ROWS]`` are unit Gaussian."""
    known, gain, _ = GAUSSIAN_CODES[state_bits, rate]
    survivors = [known, *(_candidate(state_bits, rate, rng) for _ in range(candidates))]
    looks = 4 if state_bits < 16 else 2
    for kept, sample in ((12, columns[:looks]), (1, columns[looks : looks + 24])):
        survivors.sort(key=lambda m: error(state_bits, rate, m, gain, sample))
        survivors = survivors[:kept]
    best = survivors[0]
    sample = columns[32:64] if state_bits < 16 else columns[32:48]
    return best, min((gain * step for step in GAIN_STEPS), key=lambda g: error(state_bits, rate, best, g, sample))


def error(state_bits: int, rate: int, multiplier: int, gain: float, columns: np.ndarray) -> float:
    """Mean squared error of ``columns``, both ends free."""
    table = stretched_values(state_bits, multiplier, gain, 0.0).float().numpy()
    run, ones = Search(state_bits, rate, table, ROWS), np.ones(ROWS, np.float32)
    return float(np.mean([(table[run(column, ones)] - column) ** 2 for column in columns]))


def tail_biting_error(state_bits: int, rate: int, multiplier: int, gain: float, columns: np.ndarray) -> float:
    """Mean squared error of ``columns`` as the quantizer codes them."""
    run = CpuViterbi(ROWS, state_bits, {rate: stretched_values(state_bits, multiplier, gain, 0.0)})
    targets = torch.from_numpy(columns)
    return float(np.mean([(run(t, torch.ones(ROWS), rate)[1] - t).square().mean() for t in targets]))


def _candidate(state_bits: int, rate: int, rng: np.random.Generator) -> int:
    states = 1 << state_bits
    near = (2 * int(rng.integers(0, 1 << (rate - 1))) + 1) << (state_bits - rate)
    shift = int(rng.integers(-max(2, states // 30), max(3, states // 30)))
    return (near + shift) % states | 1


if __name__ == "__main__":
    main()
