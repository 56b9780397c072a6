"""Search the multipliers and scale factors of the trellis value table
(`vqcompress.formats.trellis_table.GAUSSIAN_CODES`).

``python benchmarks/trellis_tables.py`` prints the table, one line per code: multiplier, gain, and the mean squared
error of tail-biting columns of 1024 unit Gaussian weights. Candidates are odd multiples of ``2**(L-k)`` shifted a
little, and the multipliers in use; each stage keeps fewer of them and looks at them longer. The table of weights
without new bits is searched beside that of weights with one, for columns of half a bit.

With ``--half-rates`` it prints the errors of columns whose weights add ``k`` and ``k + 1`` bits in turn, with the
tables as they are (`vqcompress.formats.trellis_table.HALF_RATE_ERRORS`).
"""

from __future__ import annotations

import click
import numpy as np
import torch

from vqcompress.formats.trellis_table import GAUSSIAN_CODES, stretched_values, value_table
from vqcompress.search.viterbi import CpuViterbi, Search

ROWS = 1024
GAIN_STEPS = (0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06)


@click.command(help=__doc__)
@click.option("--states", default="8,10,12,14,16", show_default=True, help="State bits to search, comma-separated.")
@click.option(
    "--candidates", default=400, show_default=True, help="Multipliers tried per code (fewer for 14 and 16 bits)."
)
@click.option("--half-rates", is_flag=True, help="Errors at half-integer rates; nothing is searched.")
@click.option("--seed", default=0, show_default=True)
def main(states: str, candidates: int, half_rates: bool, seed: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((128, ROWS)).astype(np.float32)
    wanted = [code for code in GAUSSIAN_CODES if str(code[0]) in states.split(",")]
    if half_rates:
        for state_bits, rate in ((bits, low + 0.5) for bits, low in wanted if (bits, low + 1) in GAUSSIAN_CODES):
            found = tail_biting_error(state_bits, rate, known_tables(state_bits, rate), columns[64:])
            print(f"    ({state_bits}, {rate}): {found:.4g},", flush=True)
        return
    for state_bits, rate in wanted:
        budget = max(24, candidates >> max(0, state_bits - 12))
        multiplier, gain = search(state_bits, rate, columns, budget, rng)
        found = 1.0
        if rate:
            table = {rate: stretched_values(state_bits, multiplier, gain, 0.0)}
            found = tail_biting_error(state_bits, rate, table, columns[64:])
        print(f"    ({state_bits}, {rate}): ({multiplier}, {gain:.3g}, {found:.4g}),", flush=True)


def known_tables(state_bits: int, rate: float) -> dict[int, torch.Tensor]:
    """The two tables of a half-integer rate, by new bits."""
    return {bits: value_table(state_bits, bits, 0.0) for bits in (int(rate), int(rate) + 1)}


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
    """Mean squared error of ``columns``, both ends free; at half a bit for the table of weights without new bits."""
    table, ones = stretched_values(state_bits, multiplier, gain, 0.0), np.ones(ROWS, np.float32)
    if rate:
        run = Search(state_bits, rate, {rate: table.float().numpy()}, ROWS, ROWS)
        tables, own = table.float().numpy()[None], np.zeros(ROWS, int)
    else:
        both = {**known_tables(state_bits, 0.5), 0: table}
        tables, own = np.stack([both[bits].float().numpy() for bits in (0, 1)]), np.arange(ROWS) % 2
        run = Search(state_bits, 0.5, dict(enumerate(tables)), ROWS, ROWS)
    return float(np.mean([(tables[own, run(column, ones)] - column) ** 2 for column in columns]))


def tail_biting_error(state_bits: int, rate: float, tables: dict[int, torch.Tensor], columns: np.ndarray) -> float:
    """Mean squared error of ``columns`` as the quantizer codes them."""
    run = CpuViterbi(ROWS, state_bits, tables)
    targets = torch.from_numpy(columns)
    return float(np.mean([(run(t, torch.ones(ROWS), rate)[1] - t).square().mean() for t in targets]))


def _candidate(state_bits: int, rate: int, rng: np.random.Generator) -> int:
    states = 1 << state_bits
    if rate == 0:  # nothing is known of where good ones lie
        return int(rng.integers(0, states)) | 1
    near = (2 * int(rng.integers(0, 1 << (rate - 1))) + 1) << (state_bits - rate)
    shift = int(rng.integers(-max(2, states // 30), max(3, states // 30)))
    return (near + shift) % states | 1


if __name__ == "__main__":
    main()
