"""Scalar codes on an affine grid per group of inputs: the format of the RTN and GPTQ baselines.

``weight[output, column] = scale[group, output] * (code - zero[group, output])`` with ``group = column // group_size``.
Codes are packed along the outputs of one column, zeros likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes, unpack


@dataclass(frozen=True)
class ScalarSpec:
    """Static geometry of a scalar-coded weight: ``bits`` a code, ``group_size`` inputs a scale and zero."""

    format: ClassVar[str] = "scalar"
    codebook: ClassVar[None] = None
    codebook_shape: ClassVar[tuple[int, ...]] = ()
    bits: int
    group_size: int

    def groups(self, columns: int) -> int:
        """Groups along the inputs; the last may be short."""
        return -(-columns // self.group_size)

    def tensor_shapes(self, outputs: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape, dtype) of every stored tensor."""
        width = packed_bytes(outputs, self.bits)
        return {
            "weight": ((1, columns * width), torch.int8),
            "group_scale": ((self.groups(columns), outputs), torch.float16),
            "group_zero": ((self.groups(columns), width), torch.int8),
        }

    def code_problem(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> str | None:
        """Nothing: any codes of the right length are valid."""
        return None

    def decode_transposed(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """``Wᵀ [columns, outputs]`` in float32; differentiable in ``group_scale``."""
        codes = unpack(tensors["weight"].reshape(columns, -1), self.bits, outputs)
        zeros = unpack(tensors["group_zero"], self.bits, outputs)
        group = torch.arange(columns, device=codes.device) // self.group_size
        return (codes - zeros[group]).float() * tensors["group_scale"].float()[group]
