"""The gate of a packed layer: spec, dense shape and stored tensors, before anything is built from them or decoded.

A spec checks its own fields when it is made. `check_layer` compares it with the dense shape, `tensor_problem` a stored
tensor with both: exact shape and dtype first, then the contents where a wrong number would be read as a length, a
position or a weight. Everything is compared in Python's integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from reprlib import repr as short_repr
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats.field_bounds import LARGEST_COUNT
from vqcompress.formats.finite import not_finite
from vqcompress.matrix_view import matrix_shape, stored_shape

if TYPE_CHECKING:
    from vqcompress.formats import FormatSpec

Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def check_shape(shape: object) -> tuple[int, ...]:
    """``shape`` as a tuple. Raises `CheckpointError` unless it is that of a Linear or Conv2d weight."""
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(sizes) not in (2, 4) or not all(type(size) is int and size > 0 for size in sizes):
        raise CheckpointError(f"its shape is {short_repr(shape)}, not the two or four sizes of a Linear or a Conv2d")
    if math.prod(sizes) > LARGEST_COUNT:
        raise CheckpointError(f"its shape is {short_repr(shape)}, more than {LARGEST_COUNT} weights")
    return sizes


def check_layer(spec: FormatSpec, shape: tuple[int, ...]) -> None:
    """Raise `CheckpointError` unless a weight of this dense shape can be stored with this spec."""
    if problem := spec.shape_problem(*matrix_shape(shape)):
        raise CheckpointError(problem)


@lru_cache(maxsize=8192)
def expected_tensors(spec: FormatSpec, shape: tuple[int, ...]) -> Sizes:
    """Name -> (shape, dtype) as in the file: `FormatSpec.tensor_shapes` with the codes in the shape of a Conv2d's."""
    sizes = spec.tensor_shapes(*matrix_shape(shape))
    codes, dtype = sizes["weight"]
    return {**sizes, "weight": (stored_shape(len(shape), codes), dtype)}  # type: ignore[arg-type]


def header_problem(
    expected: tuple[tuple[int, ...], torch.dtype], shape: tuple[int, ...], dtype: torch.dtype | str
) -> str | None:
    """Why a tensor of this shape and dtype is not the expected one, or ``None``."""
    if (tuple(shape), dtype) == expected:
        return None
    return f"is {_said(tuple(shape), dtype)}, the config says {_said(*expected)}"


def tensor_problem(spec: FormatSpec, shape: tuple[int, ...], name: str, tensor: Tensor) -> str | None:
    """What is wrong with the tensor ``name`` that is stored for a weight of this dense shape, or ``None``."""
    if problem := header_problem(expected_tensors(spec, shape)[name], tensor.shape, tensor.dtype):
        return problem
    return spec.content_problem(name, tensor, *matrix_shape(shape))


def codebook_problem(shape: tuple[int, ...], tensor: Tensor) -> str | None:
    """What is wrong with a stored shared codebook of this shape, or ``None``."""
    return header_problem((shape, torch.float16), tensor.shape, tensor.dtype) or not_finite(tensor)


def check(spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` that names the first thing wrong with a packed weight; ``tensors`` as they are stored."""
    check_layer(spec, check_shape(shape))
    for name in expected_tensors(spec, shape):
        problem = tensor_problem(spec, shape, name, tensors[name]) if name in tensors else "is missing"
        if problem:
            raise CheckpointError(f"{name} {problem}")


def _said(shape: tuple[int, ...], dtype: torch.dtype | str) -> str:
    return f"{str(dtype).removeprefix('torch.')} {short_repr(shape)}"
