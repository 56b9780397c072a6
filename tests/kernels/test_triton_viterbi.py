"""The GPU's trellis search, under the interpreter, against the CPU's."""

from __future__ import annotations

import pytest
import torch

from vqcompress.formats.trellis import window_states
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels.cpu_viterbi import CpuViterbi


@pytest.mark.parametrize(
    ("state_bits", "rate", "rows", "phase"), [(8, 1, 20, 0), (8, 3, 33, 7), (10, 2, 12, 11), (8, 4, 40, 1)]
)
def test_same_codes_as_the_cpu(state_bits, rate, rows, phase):
    pytest.importorskip("triton")
    from vqcompress.kernels.triton_viterbi import search_columns

    generator = torch.Generator().manual_seed(0)
    targets, scale = torch.randn(2, rows, generator=generator), 0.5 + torch.rand(rows, generator=generator)
    table = value_table(state_bits, rate, 0.1)
    symbols, values = search_columns(targets, scale, table, rate, phase)
    assert torch.equal(table.float()[window_states(symbols.int(), rate, state_bits).long()], values)
    search = CpuViterbi(rows, state_bits, {rate: table}, phase)
    for target, own_symbols, own_values in zip(targets, symbols, values, strict=True):
        expected_symbols, expected_values = search(target, scale, rate)
        assert torch.equal(own_symbols, expected_symbols)
        assert torch.equal(own_values, expected_values)
