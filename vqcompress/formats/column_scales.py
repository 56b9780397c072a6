"""Column scales: a factor for each input column, in half octaves of amplitude.

Columns of one weight can differ tenfold in size, as where a UNet's block reads its skip connection beside the level
below. Codes of unit variance under one scale would then spend their precision on the largest. A scale per column costs
four bits and brings every column to the size that the code was made for. Half an octave is fine enough: at most a fifth
off, on average a tenth, costs less than the bits that a finer step would take.

On disk the spec's field and the tensor are named `COLUMN_SCALES_ON_DISK`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes, unpack

COLUMN_SCALES_ON_DISK = "gains"
COLUMN_SCALE_BITS = 4
LARGEST = 4  # code 0 stands for 2 ** (LARGEST / 2)


def nearest_column_scale(ratio: Tensor) -> Tensor:
    """Codes (uint8) of the scales nearest to ``ratio``, a column's size over the layer's; zero gets the smallest."""
    return (
        (LARGEST - 2 * ratio.double().log2())
        .nan_to_num(0.0)
        .clamp(0, (1 << COLUMN_SCALE_BITS) - 1)
        .round()
        .to(torch.uint8)
    )


def column_scale_factors(codes: Tensor) -> Tensor:
    """The factors that codes stand for, float32, in the shape and on the device of ``codes``."""
    return _factors().to(codes.device)[codes.long()]


def pack_column_scales(codes: Tensor) -> Tensor:
    """Codes ``[columns]`` -> int8 ``[1, bytes]``."""
    return pack(codes[None], COLUMN_SCALE_BITS)


def unpack_column_scales(packed: Tensor, columns: int) -> Tensor:
    """The factors, float32 ``[columns]``, on the device of ``packed``."""
    return column_scale_factors(unpack(packed, COLUMN_SCALE_BITS, columns)[0])


def column_scales_shape(columns: int) -> tuple[int, int]:
    """Stored shape of packed column scales."""
    return 1, packed_bytes(columns, COLUMN_SCALE_BITS)


@lru_cache(maxsize=1)
def _factors() -> Tensor:
    factors = [2.0 ** ((LARGEST - code) / 2) for code in range(1 << COLUMN_SCALE_BITS)]
    return torch.tensor(factors, dtype=torch.float32)
