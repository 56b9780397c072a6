"""Additive vector codes: a vector of weights is a sum of codewords, one from each of a few codebooks.

Vectors run along the outputs: ``dimension`` neighbouring outputs of one column (AQLM, Egiazarian et al. 2024, arXiv
2401.06118, groups along the inputs instead; along the outputs, error feedback between columns is exact and the metric
inside a vector is Euclidean). A column of rate ``r`` sums codewords of the first ``r`` codebooks; a plain k-means code
is the case of one codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes, unpack
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, column_scales_shape, unpack_column_scales
from vqcompress.formats.field_bounds import check_integer
from vqcompress.formats.outliers import add_outliers, outlier_shapes
from vqcompress.formats.rates import (
    check_rate_fields,
    rate_range,
    rated_content_problem,
    rated_shape_problem,
    rates_shape,
    split_blocks,
    unpack_rates,
)

MAX_DIMENSION, MAX_CODE_BITS, MAX_CODEBOOKS = 64, 16, 64


@dataclass(frozen=True)
class AdditiveSpec:
    """Static geometry of an additively coded weight: all that is not a tensor.

    ``codebook`` names the component's shared codebook, or is ``None`` when the layer stores its own; ``min_rate`` and
    ``rate_bits`` say how column rates (codes per vector) are stored; with ``column_scales`` every column has a factor
    of its own (`vqcompress.formats.column_scales`); ``outliers`` weights are added last
    (`vqcompress.formats.outliers`); the rest are sizes. Raises `ValueError` for fields of another type or out of range.
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
    column_scales: bool = False
    outliers: int = 0

    def __post_init__(self) -> None:
        check_integer("dimension", self.dimension, 1, MAX_DIMENSION)
        check_integer("code_bits", self.code_bits, 1, MAX_CODE_BITS)
        check_integer("codebooks", self.codebooks, 1, MAX_CODEBOOKS)
        check_rate_fields(self)

    def tensor_shapes(self, outputs: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape, dtype) of every tensor stored with the layer (a shared codebook is not)."""
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "weight": ((1, self.code_bytes), torch.int8),
            "scale": ((outputs if self.row_scales else 1,), torch.float16),
        }
        if self.rate_bits:
            shapes["rates"] = (rates_shape(columns, self.rate_bits), torch.int8)
        if self.column_scales:
            shapes[COLUMN_SCALES_ON_DISK] = (column_scales_shape(columns), torch.int8)
        if self.codebook is None:
            shapes["codebooks"] = (self.codebook_shape, torch.float16)
        return shapes | outlier_shapes(self.outliers)

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        """``[codebooks, 2**code_bits, dimension]``."""
        return self.codebooks, 1 << self.code_bits, self.dimension

    def vectors(self, outputs: int) -> int:
        """Vectors in a column; the last one is padded when ``dimension`` does not divide ``outputs``."""
        return -(-outputs // self.dimension)

    def rates(self, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """The rate (codes per vector) of each column, int64 ``[columns]``."""
        return unpack_rates(tensors.get("rates"), columns, self.min_rate, self.rate_bits)

    @property
    def largest_rate(self) -> int:
        """The largest rate that the format has."""
        return self.codebooks

    @property
    def rate_range(self) -> range:
        """The rates that columns can have."""
        return rate_range(self.min_rate, self.rate_bits, self.largest_rate)

    def column_bits(self, outputs: int, rate: int) -> int:
        """Bits that a column of this rate takes."""
        return self.vectors(outputs) * rate * self.code_bits

    def shape_problem(self, outputs: int, columns: int) -> str | None:
        """Why a matrix of these sizes cannot be stored with these fields, or ``None``."""
        return rated_shape_problem(self, outputs, columns)

    def content_problem(self, name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
        """What is wrong with the contents of a stored tensor of the right shape and dtype, or ``None``."""
        return rated_content_problem(self, name, tensor, outputs, columns)

    def decode_transposed(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """``Wᵀ [columns, outputs]`` in float32; differentiable in ``codebooks`` and ``scale``."""
        codes, codebooks = tensors["weight"], tensors["codebooks"].float()
        count = self.vectors(outputs)
        values = torch.zeros(columns, outputs, dtype=torch.float32, device=codes.device)
        rates = self.rates(columns, tensors)
        for block in split_blocks(codes, rates, lambda rate: packed_bytes(count * rate, self.code_bits)):
            if block.rate:
                indices = unpack(block.codes, self.code_bits, count * block.rate).view(-1, count, block.rate)
                vectors = sum(codebooks[m][indices[..., m]] for m in range(block.rate))
                values[block.columns] = vectors.flatten(1)[:, :outputs]
        values = values * tensors["scale"].float()
        if self.column_scales:
            values = values * unpack_column_scales(tensors[COLUMN_SCALES_ON_DISK], columns)[:, None]
        return add_outliers(values, tensors) if self.outliers else values
