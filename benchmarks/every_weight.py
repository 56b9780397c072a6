"""Packed weights of every format, rate, state size, transform and odd shape, to hold kernels against the reference."""

from __future__ import annotations

from functools import lru_cache

import torch

from random_weights import Coded, Extras, additive, scalar, trellis
from vqcompress.formats.trellis_table import STATE_BITS, max_rate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVERYTHING = Extras(column_scales=True, outliers=7, rotation=4)
Case = tuple[Coded, torch.dtype]


def rates(state_bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """All rates in half bits, whole ones first."""
    most = max_rate(state_bits)
    return tuple(2 * rate for rate in range(most + 1)), tuple(range(1, 2 * most, 2))


@lru_cache(maxsize=1)
def weights() -> list[Case]:
    """Weights and the dtype to decode each to: a case of every kind."""
    cases: list[Case] = []
    for index, state_bits in enumerate(STATE_BITS):
        for halves in rates(state_bits):
            cases.append((trellis((64, 3 * len(halves)), state_bits, halves), DTYPES[index % 3]))
            cases.append((trellis((45, len(halves)), state_bits, halves), torch.float32))
    whole, _ = rates(12)
    for dtype in DTYPES:
        for outputs in (1, 2, 3, 5, 31, 32, 33, 96):
            cases.append((trellis((outputs, 8), 12, (6, 4, 0)), dtype))
        cases.append((trellis((64, 5), 12, (6, 5)), dtype))
        cases.append((additive((64, 7), 8, 8, 2), dtype))
        cases.append((scalar((64, 9), 3, 4), dtype))
    for rotation in (1, 2, 8, 32, 64, 128, 256):
        cases.append((trellis((256, 5), 12, (6, 4), Extras(rotation=rotation)), torch.float32))
    cases.append((trellis((768, 3), 12, (6,), Extras(rotation=256, column_scales=True, outliers=9)), torch.bfloat16))
    for shape in ((64, 12), (36, 2, 3, 3), (100, 3, 1, 3)):
        cases.append((trellis(shape, 12, whole, EVERYTHING), torch.float16))
        cases.append((trellis(shape, 8, (3, 4, 5), EVERYTHING), torch.bfloat16))
        for learned in (Extras(learned=True), Extras(learned=True, row_scales=False)):
            cases.append((trellis(shape, 8, (6, 4), learned), torch.float32))
    cases.append((trellis((32, 4), 14, (6, 5), Extras(learned=True)), torch.float32))
    for dimension, code_bits, books in ((8, 8, 3), (3, 5, 2), (1, 1, 1), (40, 3, 2), (16, 11, 1), (4, 16, 1)):
        for outputs in (33, 64):
            given = Extras(column_scales=outputs == 64, outliers=2, row_scales=dimension != 3)
            cases.append((additive((outputs, 5), dimension, code_bits, books, given), torch.float32))
    for bits in range(1, 9):
        cases.append((scalar((32 + bits, 7), bits, 3), torch.float32))
        cases.append((scalar((64, 5), bits, 4, max(2, bits)), torch.float16))
    return cases
