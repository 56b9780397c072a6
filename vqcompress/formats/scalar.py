"""Scalar codes on an affine grid per group of inputs: the format of the RTN and GPTQ baselines.

``weight[output, column] = scale[group, output] * (code - zero[group, output])`` with ``group = column // group_size``.
Codes are packed along the outputs of one column, zeros likewise. Scales are float16, or small packed integers times one
float16 factor an output, as in GGUF's K-quants: groups can then be half as large in as many bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import ClassVar

import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes, unpack
from vqcompress.formats.field_bounds import check_integer
from vqcompress.formats.finite import not_finite

MAX_BITS = 8
FLOAT_SCALES = 16  # bits of a scale that is a float16


@dataclass(frozen=True)
class ScalarSpec:
    """Static geometry of a scalar-coded weight.

    ``bits`` a code, ``group_size`` inputs a scale and zero, ``scale_bits`` a scale: `FLOAT_SCALES` for float16, or 2 to
    8 for an integer that the output's factor multiplies. Raises `ValueError` for fields of another type or out of
    range.
    """

    format: ClassVar[str] = "scalar"
    codebook: ClassVar[None] = None
    codebook_shape: ClassVar[tuple[int, ...]] = ()
    bits: int
    group_size: int
    scale_bits: int = FLOAT_SCALES

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, MAX_BITS)
        check_integer("group_size", self.group_size, 1)
        if type(self.scale_bits) is not int or (self.scale_bits != FLOAT_SCALES and not 2 <= self.scale_bits <= 8):
            raise ValueError(f"scales of {short_repr(self.scale_bits)} bits; they have 2 to 8, or {FLOAT_SCALES}")

    @property
    def packed_scales(self) -> bool:
        """Whether scales are integers times a factor of each output."""
        return self.scale_bits != FLOAT_SCALES

    def groups(self, columns: int) -> int:
        """Groups along the inputs; the last may be short."""
        return -(-columns // self.group_size)

    def tensor_shapes(self, outputs: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape, dtype) of every stored tensor."""
        width, groups = packed_bytes(outputs, self.bits), self.groups(columns)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "weight": ((1, columns * width), torch.int8),
            "group_scale": ((groups, outputs), torch.float16),
            "group_zero": ((groups, width), torch.int8),
        }
        if self.packed_scales:
            shapes["group_scale"] = ((groups, packed_bytes(outputs, self.scale_bits)), torch.int8)
            shapes["scale"] = ((outputs,), torch.float16)
        return shapes

    def group_factors(self, outputs: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """What multiplies the codes of each group, ``[groups, outputs]``: scales as stored, or the integers of packed
        ones, int32."""
        stored = tensors["group_scale"]
        return unpack(stored, self.scale_bits, outputs) if self.packed_scales else stored

    def shape_problem(self, outputs: int, columns: int) -> str | None:
        """Nothing: any matrix can be stored."""
        return None

    def content_problem(self, name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
        """Scales must be finite; any codes and zeros are valid."""
        return not_finite(tensor)

    def decode_transposed(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """``Wᵀ [columns, outputs]`` in float32; differentiable in ``group_scale``, or in the ``scale`` of
        packed ones."""
        codes = unpack(tensors["weight"].reshape(columns, -1), self.bits, outputs)
        zeros = unpack(tensors["group_zero"], self.bits, outputs)
        group = torch.arange(columns, device=codes.device) // self.group_size
        factors = self.group_factors(outputs, tensors).float()
        if self.packed_scales:
            factors = factors * tensors["scale"].float()
        return (codes - zeros[group]).float() * factors[group]
