"""Outliers: a few weights stored beside the codes, in 16 bits with their positions.

A single weight of a hundred standard deviations lies outside of any code's range, and a scale that reaches it wastes
the range on everything else. Such weights are taken out before encoding and added to what the codes decode to, after
column scales and rotation: ``W = V + S`` with a sparse ``S`` (as in SpQR, Dettmers et al. 2023, arXiv 2306.03078).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqcompress.formats.finite import not_finite

VALUES, POSITIONS = "outlier_values", "outlier_positions"
BITS_EACH = 16 + 32


def outlier_shapes(count: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The tensors of ``count`` outliers: values, and rising positions ``column * outputs + output``. None for none."""
    return {VALUES: ((count,), torch.float16), POSITIONS: ((count,), torch.int32)} if count else {}


def places_of(positions: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Columns and outputs, int64 ``[n]`` each, of ``positions [n]`` in a weight of ``outputs`` outputs."""
    positions = positions.long()
    return positions // outputs, positions % outputs


def add_outliers(transposed: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """``transposed [columns, outputs]``, decoded codes, with the outliers added; differentiable in both."""
    values = tensors[VALUES].to(transposed.dtype)
    return transposed.flatten().index_add(0, tensors[POSITIONS].long(), values).view_as(transposed)


def outlier_problem(name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
    """What is wrong with stored values or positions, or ``None``.

    Positions must rise and lie in the weight, values be finite.
    """
    if name == VALUES:
        return not_finite(tensor)
    positions = tensor.cpu().numpy()
    if len(positions) and (int(positions[0]) < 0 or int(positions[-1]) >= outputs * columns):
        return f"holds positions outside of the {outputs * columns} weights"
    return None if bool((positions[1:] > positions[:-1]).all()) else "holds positions that do not rise"
