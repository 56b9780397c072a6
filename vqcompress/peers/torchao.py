"""torchao's weight-only formats: int4 with groups of 128 as its tinygemm layout stores them, int8 with row scales."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers.peer import Peer, PeerWeight, UnfitForPeerError, installed

INSTALL = "pip install torchao"
GROUPS = (128, 64, 32)
"""Group sizes of the layout, the default first; the first that divides the columns is taken."""


def _int4(matrix: Tensor, moment: SecondMoment | None) -> PeerWeight:
    """A bfloat16 scale and a bfloat16 zero point a group."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        _choose_qparams_affine_tinygemm,
        _dequantize_affine_tinygemm,
        _quantize_affine_tinygemm,
    )

    rows, columns = matrix.shape
    group = next((size for size in GROUPS if columns % size == 0), None)
    if group is None:
        raise UnfitForPeerError(f"torchao's int4 takes whole groups of {GROUPS[-1]} columns, not {columns} columns")
    block, weight = (1, group), matrix.bfloat16()
    scale, zero = _choose_qparams_affine_tinygemm(
        weight, MappingType.ASYMMETRIC, block, torch.int32, 0, 15, 1e-6, torch.bfloat16, torch.bfloat16
    )
    codes = _quantize_affine_tinygemm(weight, block, scale, zero, torch.int32, 0, 15)
    dense = _dequantize_affine_tinygemm(codes, block, scale, zero, torch.int32, 0, 15, output_dtype=torch.bfloat16)
    return PeerWeight(dense, rows * columns // 2 + scale.nbytes + zero.nbytes)


def _int8(matrix: Tensor, moment: SecondMoment | None) -> PeerWeight:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    rows, columns = matrix.shape
    holder = nn.Sequential(nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16))
    holder[0].weight = nn.Parameter(matrix.bfloat16(), requires_grad=False)
    quantize_(holder, Int8WeightOnlyConfig())
    return PeerWeight(holder[0].weight.dequantize(), rows * columns + 2 * rows)


def peers() -> list[Peer]:
    """``torchao-int4`` and ``torchao-int8``."""
    found = partial(installed, "torchao")
    kinds = {"int4": _int4, "int8": _int8}
    return [
        Peer(f"torchao-{kind}", f"torchao-{kind}", encode, found, "pip install torchao")
        for kind, encode in kinds.items()
    ]
