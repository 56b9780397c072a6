"""Additive vector codes: a vector of weights is a sum of codewords, one from each of a few codebooks.

Vectors run along the outputs: ``dimension`` neighbouring rows of one column (AQLM, Egiazarian et al. 2024, arXiv
2401.06118, groups along the inputs instead; along the outputs, error feedback between columns is exact and the
metric inside a vector is Euclidean). A column of rate ``r`` sums codewords of the first ``r`` codebooks; a plain k-means
code is the case of one codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes, unpack
from vqcompress.formats.column_scales import column_scales_shape, unpack_column_scales
from vqcompress.formats.rates import rates_shape, split_blocks, unpack_rates


@dataclass(frozen=True)
class AdditiveSpec:
    """Static geometry of an additively coded weight: all that is not a tensor.

    ``codebook`` names the component's shared codebook, or is ``None`` when the layer stores its own;
    ``min_rate`` and ``rate_bits`` say how column rates (codes per vector) are stored; with ``gains`` every column has a factor of its
    own (`vqcompress.formats.column_scales`), which comes last; the rest are sizes.
    """

    format: ClassVar[str] = "additive"
    dimension: int
    code_bits: int
    codebooks: int
    min_rate: int
    rate_bits: int
    codebook: str | None
    row_scales: bool
    code_bytes: int
    gains: bool = False

    def tensor_shapes(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape, dtype) of every tensor stored with the layer (a shared codebook is not)."""
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "weight": ((1, self.code_bytes), torch.int8),
            "scale": ((rows if self.row_scales else 1,), torch.float16),
        }
        if self.rate_bits:
            shapes["rates"] = (rates_shape(columns, self.rate_bits), torch.int8)
        if self.gains:
            shapes["gains"] = (column_scales_shape(columns), torch.int8)
        if self.codebook is None:
            shapes["codebooks"] = (self.codebook_shape, torch.float16)
        return shapes

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        """``[codebooks, 2**code_bits, dimension]``."""
        return self.codebooks, 1 << self.code_bits, self.dimension

    def vectors(self, rows: int) -> int:
        """Vectors in a column; the last one is padded when ``dimension`` does not divide ``rows``."""
        return -(-rows // self.dimension)

    def rates(self, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """The rate (codes per vector) of each column, int64 ``[columns]``."""
        return unpack_rates(tensors.get("rates"), columns, self.min_rate, self.rate_bits)

    def decode_transposed(self, rows: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """``Wᵀ [columns, rows]`` in float32; differentiable in ``codebooks`` and ``scale``."""
        codes, codebooks = tensors["weight"], tensors["codebooks"].float()
        count = self.vectors(rows)
        values = torch.zeros(columns, rows, device=codes.device)
        rates = self.rates(columns, tensors)
        for block in split_blocks(codes, rates, lambda rate: packed_bytes(count * rate, self.code_bits)):
            if block.rate:
                indices = unpack(block.codes, self.code_bits, count * block.rate).view(-1, count, block.rate)
                vectors = sum(codebooks[m][indices[..., m]] for m in range(block.rate))
                values[block.columns] = vectors.flatten(1)[:, :rows]
        values = values * tensors["scale"].float()
        return values * unpack_column_scales(tensors["gains"], columns)[:, None] if self.gains else values
